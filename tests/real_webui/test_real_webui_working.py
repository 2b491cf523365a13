"""A real WebUI that is killed during a merge, and goes on with it when it is started again.

Needs `LORACLR_WEBUI_DIR` (see test_real_webui.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import ask, install_link, started
from safetensors.torch import load_file
from webui_process import KEEPING, tiny_loras, tiny_models

from tests import tiny_checkpoints as tiny

pytestmark = pytest.mark.skipif(
    "LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to test in"
)

ROUTES = "loraclr/v1"
ASKED = {
    "concepts": [{"lora": "one", "trigger": "sks animal"}, {"lora": "two", "trigger": "ohwx bird"}],
    "options": {"effort": "fast", "steps": 60},
    "recording": {"paths": 2, "steps": 2, "height": 64, "width": 64},
}
#: a look at the held-back paths, at which the state is kept, comes after each sixth of the steps
KEPT_BY = 12


def followed(url: str, until: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """What a new merge says of itself until it has said this."""
    status, answer = ask(url, f"{ROUTES}/merge", body={"request": ASKED, "preview": False})
    assert status == 200, answer
    told, end = [], time.monotonic() + 600
    while (not told or not until(told[-1])) and time.monotonic() < end:
        told.append(ask(url, f"{ROUTES}/jobs/{answer['id']}")[1])
        time.sleep(0.05)
    return told


def step(told: dict[str, Any]) -> int:
    """Which step of the refinement it is at; 0 in all other stages."""
    _, found, rest = told["text"].partition("Refining: step ")
    return int(rest.split()[0]) if found else 0


def test_a_merge_that_dies_with_the_webui_goes_on_in_the_next(tmp_path: Path) -> None:
    tiny_models(tmp_path, tiny.SD1)
    install_link(tmp_path)
    with started(tmp_path, settings=KEEPING) as (webui, url):
        tiny_loras(webui, ("one", "two"), {"ss_base_model_version": "sd_v1"})
        ask(url, f"{ROUTES}/loras?rescan=true")
        before = followed(
            url, lambda told: step(told) > KEPT_BY or told["state"] != "running" and told["state"] != "queued"
        )
        assert before[-1]["state"] == "running" and not any("goes on" in told["text"] for told in before)
        webui._process.send_signal(signal.SIGKILL)
        webui._process.wait()
    assert list((tmp_path / "cache" / "loraclr-work").glob("*.loraclr.safetensors"))
    over = ("finished", "failed")
    with started(tmp_path, settings=KEEPING) as (webui, url):
        after = followed(url, lambda told: told["state"] in over)
        assert after[-1]["state"] == "finished", after[-1]["error"]
        assert any("goes on from before" in told["text"] for told in after)
        # of the first it is told before it is looked for what was kept
        assert not {*map(step, after)} & {*range(2, 11)}, "the steps that were made are not made again"
        ask(url, f"{ROUTES}/jobs/{after[-1]['id']}/keep", body={"name": "went-on"})
        # control: with nothing kept it is merged from the beginning, and comes to the same
        ask(url, "sdapi/v1/options", body={"loraclr_work_limit": 0})
        afresh = followed(url, lambda told: told["state"] in over)
        assert not any("goes on" in told["text"] for told in afresh)
        ask(url, f"{ROUTES}/jobs/{afresh[-1]['id']}/keep", body={"name": "afresh"})
    one, other = (load_file(tmp_path / "models" / "Lora" / f"{name}.safetensors") for name in ("went-on", "afresh"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
