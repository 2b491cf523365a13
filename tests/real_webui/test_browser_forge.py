"""The tab in the real Forge and in Forge Neo, whose gradio is another, and in reForge, driven by a real browser.

Needs what `test_real_forge.py` and `test_browser.py` need.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import VANILLA, go, install_link, missing, started
from test_real_forge import PROGRAMS
from webui_process import DEMO, REFORGE, Program, demo_models

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")
#: what their pages print into the browser's console without us: of arguments gradio 4.40 complains there at every call that has
#: any, txt2img's counting of words included
THEIRS = (*VANILLA, "non-interactive or hidden tab", "Too many arguments provided for the endpoint")


@pytest.fixture(params=PROGRAMS, scope="module")
def here(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Program, Path, str]]:
    """The program, its data folder and its address."""
    program, folder = request.param, tmp_path_factory.mktemp("forge")
    demo_models(folder)
    install_link(folder)
    # their own files, which a data folder elsewhere would hide from the page, and ours
    allowed = (program.folder, DEMO.parent)
    flags = [part for path in allowed for part in ("--gradio-allowed-path", str(path))]
    with started(folder, *flags, program=program) as (_, url):
        yield program, folder, url


def test_from_picking_to_a_picture(here: tuple[Program, Path, str]) -> None:
    program, folder, url = here
    seen = go(url, "plain", known=THEIRS)
    assert "Ready to merge" in seen["check"] and "ohwx bird" in seen["check"]
    assert "%" in seen["bar"]
    assert "Recognised" in seen["result"] and "Two in one picture" in seen["result"]
    assert "<lora:fox-face-penguin:1>" in seen["kept"]
    assert seen["prompt"] == "sks animal, ohwx bird, <lora:fox-face-penguin:1>"
    assert (folder / "models" / "Lora" / "fox-face-penguin.safetensors").is_file()
    if program is REFORGE:  # in the others not tried
        seen = go(url, "used", known=THEIRS)
        assert seen["with"] != seen["without"] and "<lora:fox-face-penguin:1>" in seen["infotext"]


def test_from_a_card_to_an_arrangement_and_again(here: tuple[Program, Path, str]) -> None:
    seen = go(here[2], "studio", known=THEIRS)
    assert seen["card"] == ["fox-face"] and "In each other's way" in seen["check"]
    assert seen["tried"]["pictures"] == 4 and seen["tried"]["at"] == "20%"
    assert "Neither Regional Prompter" in seen["note"] and "<lora:fox-face-penguin" in seen["prompt"]
    assert seen["negative"] == "ugly", "what stood in txt2img stays there"
    assert seen["rows"] == ["fox-face", "penguin"] and seen["method"] == "average"
    axes = ("merged file", "weight of the merged file", "effort of the merged file")
    assert seen["axes"] == [f"[LoRACLR] {axis}" for axis in axes]
