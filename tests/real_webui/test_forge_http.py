"""A merge from beginning to end over HTTP, in the real Forge, in Forge Neo and in reForge. Needs what
`test_real_forge.py` needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from browser import ask, install_link, started
from programs import FAMILY, Program
from webui_process import demo_models

REQUEST = {
    "concepts": [{"lora": "fox-face", "trigger": "sks animal"}, {"lora": "penguin", "trigger": "ohwx bird"}],
    "method": "contrastive",
    "options": {"effort": "fast"},
    "recording": {"height": 128, "width": 128, "paths": 2, "steps": 4},
}


def _followed(url: str, job: str, *, seconds: float = 900) -> dict[str, Any]:
    """The job's status when it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status, told = ask(url, f"loraclr/v1/jobs/{job}")
        assert status == 200
        if told["state"] not in ("queued", "running"):
            return told
        time.sleep(1)
    raise AssertionError(told)


@pytest.mark.parametrize("program", FAMILY)
def test_the_whole_way_by_http(program: Program, tmp_path: Path) -> None:
    demo_models(tmp_path)
    install_link(tmp_path)
    with started(tmp_path, program=program) as (webui, url):
        status, listed = ask(url, "loraclr/v1/loras")
        assert status == 200 and {"fox-face", "penguin", "style-clay"} <= {lora["name"] for lora in listed}
        status, checked = ask(url, "loraclr/v1/check", body={"request": REQUEST})
        assert status == 200, checked
        before = webui.ask("picture", prompt="a cat")
        status, begun = ask(url, "loraclr/v1/merge", body={"request": REQUEST, "preview": True})
        assert status == 200, begun
        told = _followed(url, begun["id"])
        assert told["state"] == "finished" and told["family"] == "SD1", told
        _, result = ask(url, f"loraclr/v1/jobs/{begun['id']}/result")
        assert result["preview"] and all(concept["merged"] > 0.2 for concept in result["report"]["concepts"])
        status, kept = ask(url, f"loraclr/v1/jobs/{begun['id']}/keep", body={"name": "friends"})
        assert status == 200 and kept["tag"] == "<lora:friends:1>" and kept["obstacle"] is None
        assert webui.ask("unknown_tensors", name="friends") == []
        assert webui.ask("picture", prompt="a cat") == before
        assert webui.ask("picture_distance", first="a sks animal", second="a sks animal <lora:friends:1>") > 20
        # another one, interrupted
        _, begun = ask(url, "loraclr/v1/merge", body={"request": REQUEST, "preview": False})
        time.sleep(3)
        ask(url, f"loraclr/v1/jobs/{begun['id']}/interrupt", body={"now": True})
        assert _followed(url, begun["id"])["state"] == "interrupted"
        assert webui.ask("picture", prompt="a cat") == before
