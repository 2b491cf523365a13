"""The tab in the real Forge and in Forge Neo, whose gradio is another, driven by a real browser.

Needs what `test_real_forge.py` and `test_browser.py` need.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import VANILLA, go, install_link, missing, started
from test_real_forge import PROGRAMS
from webui_process import DEMO, Program, demo_models

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")
#: what their pages print into the browser's console: gradio 4 hands a function of the page its outputs besides its inputs, and
#: warns where it hands them back, as both gradios let it
THEIRS = (*VANILLA, "non-interactive or hidden tab", "Too many arguments provided for the endpoint")


@pytest.mark.parametrize("program", PROGRAMS)
def test_from_picking_to_sending(program: Program, tmp_path: Path) -> None:
    demo_models(tmp_path)
    install_link(tmp_path)
    # their own files, which a data folder elsewhere would hide from the page, and ours
    allowed = (program.folder, DEMO.parent)
    flags = [part for folder in allowed for part in ("--gradio-allowed-path", str(folder))]
    with started(tmp_path, *flags, program=program) as (_, url):
        seen = go(url, "plain", known=THEIRS)
    assert "Ready to merge" in seen["check"] and "ohwx bird" in seen["check"]
    assert "%" in seen["bar"]
    assert "Recognised" in seen["result"] and "Two in one picture" in seen["result"]
    assert "<lora:fox-face-penguin:1>" in seen["kept"]
    assert seen["prompt"] == "sks animal, ohwx bird, <lora:fox-face-penguin:1>"
    assert (tmp_path / "models" / "Lora" / "fox-face-penguin.safetensors").is_file()
