"""Merges and pictures in turn in one real WebUI, with nothing growing. Needs what `test_real_webui.py` needs.

    LORACLR_HAUL=50 pytest tests/real_webui/test_real_webui_haul.py -s

makes more of them than a test run has time for, and prints what the first and the last ten took.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from browser import install_link
from webui_process import WebUI, tiny_loras, tiny_models

from tests import tiny_checkpoints as tiny

#: merges, in all ways and with all endings in turn
MERGES = int(os.environ.get("LORACLR_HAUL", "10"))
#: after these two results are held that nobody decided on, as many as ever, and nothing may grow any more
SETTLED = 6
NAMES = [["one", "alpha"], ["two", "beta"]]
#: the one without tags last: `webui_faults.pictures`
PROMPTS = ["a photo of alpha <lora:one:0.8>", "a photo of a cat"]

pytestmark = pytest.mark.skipif(
    "LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to test in"
)


def test_merges_and_pictures_in_turn_leave_no_more_than_the_first(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tiny_models(tmp_path, tiny.SD1)
    install_link(tmp_path)
    webui = WebUI(tmp_path)
    try:
        assert webui.ask("ready").startswith("tiny-sd1")
        tiny_loras(webui, ("one", "two"), {"ss_base_model_version": "sd_v1"})
        pictures = webui.ask("pictures", prompts=PROMPTS)
        before = webui.ask("look")
        seen = [webui.ask("haul", number=number, names=NAMES, prompts=PROMPTS) for number in range(MERGES)]
    finally:
        webui.close()
    for number, found in enumerate(seen):
        told = f"merge {number}"
        assert found["pictures"] == pictures, f"{told}: the pictures are others"
        assert found["weights"] == before["weights"] and found["hooks"] == before["hooks"], told
        assert found["traces"] == before["traces"] and found["lock free"], told
    states = {found["state"] for found in seen}
    assert states == {"kept", "put back", "discarded", "finished", "interrupted"}, "control: merges ended in every way"
    settled, last = seen[SETTLED - 1], seen[-1]
    most = max(found["memory"] for found in seen[:SETTLED])
    assert all(found["memory"] <= 1.02 * most for found in seen[SETTLED:])
    assert last["threads"] <= settled["threads"] and last["jobs"] <= 32
    made = {"models/Lora/haul.safetensors", "models/Lora/haul.json", "models/Lora/haul.png"}
    new = {path for path in set(last["files"]) - set(before["files"]) if "/." not in path}
    assert new <= made | {"loraclr-history.json", "params.txt"}, new
    told = _told(seen)
    record_property("first and last", told)
    print(told)  # noqa: T201  (for `pytest -s`)


def _told(seen: list[dict[str, Any]]) -> str:
    few = min(10, len(seen) // 2)
    first, last = seen[:few], seen[-few:]

    def ratio(name: str) -> str:
        return f"{mean(found[name] for found in last) / mean(found[name] for found in first):.2f}"

    resident = [found["resident"] >> 20 for found in (seen[SETTLED - 1], seen[-1])]
    tensors = [found["memory"] / 2**20 for found in (seen[SETTLED - 1], seen[-1])]
    return (
        f"{len(seen)} merges; the last {few} took {ratio('seconds')} times as much of the processor as the first {few}, their "
        f"pictures {ratio('drawing')} times; tensors {tensors[0]:.1f} MB after {SETTLED} and {tensors[1]:.1f} MB in the end, the "
        f"whole process {resident[0]} MB and {resident[1]} MB"
    )
