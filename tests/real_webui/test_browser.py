"""The tab in each real WebUI, driven by a real browser.

Needs `LORACLR_WEBUI_DIR` (see test_real_webui.py) or those that test_real_forge.py names; and playwright for
`LORACLR_WEBUI_PYTHON`, and a Chromium (`LORACLR_CHROMIUM` names one that is not on the path). With `LORACLR_SHOTS`, screenshots
are put into that folder, one program's over another's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import RELOADING, go, missing, running
from PIL import Image
from programs import EVERY, Program
from webui_process import DEMO, WebUI, random_lora, sdxl_loras, sdxl_models

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


@pytest.fixture(scope="module", params=EVERY)
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebUI, str]]:
    """A WebUI with the demo's LoRAs, one of which has a picture on its card."""
    with running(tmp_path_factory.mktemp("browser"), program=request.param) as (webui, address):
        Image.new("RGB", (40, 60), "orange").save(webui.folder / "models" / "Lora" / "fox-face.png")
        yield webui, address


@pytest.fixture
def url(here: tuple[WebUI, str]) -> str:
    return here[1]


def shorthash(path: Path) -> str:
    """What the WebUI calls a LoRA file by in infotext: of all that follows the header (`modules/hashes.py`)."""
    blob = path.read_bytes()
    return hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little") :]).hexdigest()[:12]


def test_the_whole_way(here: tuple[WebUI, str]) -> None:
    webui, url = here
    seen = go(url, "whole")
    assert seen["triggers"] == ["sks animal", "ohwx bird"]
    [[complete, width]] = seen["pictures"]
    assert complete and width == 40
    assert seen["edited"] == "0.9" and seen["kind"] == "style" and seen["bulk"] == ["0.8"] * 3
    assert seen["name"] == "fox-face-penguin-style-mono"
    for text in ("Ready to merge", "ohwx bird", "up to"):
        assert text in seen["check"]
    assert "%" in seen["bar"] and "/" not in seen["bar"] and "ETA" not in seen["bar"]
    for text in ("Recognised", "fox-face", "Pictures without a trigger", "Rank", "MB"):
        assert text in seen["result"]
    assert "<lora:fox-face-penguin-style-mono:1>" in seen["kept"]
    assert seen["copied"] == "sks animal, ohwx bird, <lora:fox-face-penguin-style-mono:1>" and seen["folder"]
    assert "fox-face-penguin-style-mono" in seen["cards"]
    assert "sks animal, ohwx bird" in seen["card"] and 'class="preview"' in seen["card"]
    assert seen["prompt"] == "sks animal, ohwx bird, <lora:fox-face-penguin-style-mono:1>"
    file = webui.folder / "models" / "Lora" / "fox-face-penguin-style-mono.safetensors"
    assert f'Lora hashes: "{file.stem}: {shorthash(file)}"' in seen["infotext"]


def test_at_the_efforts_that_are_asked_for(here: tuple[WebUI, str]) -> None:
    """With all that they record; `LORACLR_EFFORTS=Balanced,Thorough` looks at others than the fastest of them."""
    efforts = os.environ.get("LORACLR_EFFORTS", "Fast").split(",")
    for effort, seen in zip(efforts, go(here[1], "efforts", LORACLR_EFFORTS=",".join(efforts))["efforts"], strict=True):
        name = f"penguin-guitar-{effort.lower()}"
        assert "Ready to merge" in seen["check"] and "Recognised" in seen["result"]
        assert f"Kept as {name}" in seen["kept"] and f"<lora:{name}:1>" in seen["prompt"]
        assert seen["with"] != seen["without"] and f"<lora:{name}:1>" in seen["infotext"]


def test_from_prompt_keyboard_interrupt_restore_discard(url: str) -> None:
    seen = go(url, "keyboard")
    assert seen["weights"] == [["0.7", "0.7"], ["0.5", "0.25"]]
    assert "no LoRA nobody here" in seen["message"] and "penguin" not in seen["message"]
    assert seen["acknowledged"] < 1.0
    assert "Interrupted. Nothing was kept" in seen["interrupted"]
    assert seen["rows"] == seen["weights"], "what was asked for stands there again"
    assert "Recognised" in seen["restored"]
    assert "Nothing was written" in seen["discarded"]


def test_what_is_done_in_haste_is_done_right(url: str) -> None:
    seen = go(url, "hasty")
    assert seen["chosen"] == 3 and seen["name"] == "fox-face-penguin-pizza"
    assert seen["after Ctrl+Enter"] == 3, "Enter merges, and chooses nothing"
    assert not seen["interrupted"], "Esc closes the list, and interrupts nothing"
    tag = "<lora:fox-face-penguin-pizza:1>"
    assert seen["prompt"] == f"a castle, sks animals <lora:style-clay:1>, sks animal, ohwx bird, vbk food, {tag}"


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("way", ["looks", "narrow"])
def test_wide_and_narrow_light_and_dark(url: str, way: str, theme: str) -> None:
    seen = go(url, way, LORACLR_THEME=theme)
    assert seen["overflow"] <= 0 and seen["untold"] == [], "every fold says what is in it"
    assert seen["tips"] == [], "no field has another tab's tooltip"
    assert seen["octopus"] == "octopus", "what begins with what is typed comes first, and is what Enter takes"
    assert seen["one weight"] == ["0.4", "0.4", False] and seen["two weights"] == ["0.4", "0.7", True]
    assert seen["labels"] == (["Weight", "Trigger words", "Kind"] if way == "narrow" else [])


def test_the_settings_have_a_section(url: str) -> None:
    section = go(url, "settings")["section"]
    for label in (
        "Memory budget",
        "Method that a merge begins with",
        "Sub-folder",
        "Draw pictures",
        "Keep the picture to judge",
        "Disk space in MB for what merges record",
        "Folder for what merges record",
    ):
        assert label in section


def test_an_existing_name_is_replaced_only_after_confirmation(here: tuple[WebUI, str]) -> None:
    seen = go(here[1], "overwrite")
    assert not seen["replace offered at once"] and "exists already" in seen["refused"]
    assert seen["untouched"] == seen["first"], "asking is not replacing"
    assert seen["second"] != seen["first"], "not the stale picture"
    assert seen["put back"] == seen["first"]


def test_defaults_and_a_merge_that_reload_ui_stops(here: tuple[WebUI, str]) -> None:
    webui, url = here
    seen = go(url, "anew", known=RELOADING, LORACLR_UI_CONFIG=str(webui.folder / "ui-config.json"))
    labels = {key.split("/")[1] for key in seen["kept as defaults"]}
    assert {"Effort", "Precision", "Quality words", "Negative prompt"} <= labels, "what belongs to a person"
    assert not labels & {"Method", "Seed", "Width", "Rank", "Name of the new LoRA", "Save as"}, (
        "what belongs to a merge"
    )
    assert seen["effort"] == "Fast" and seen["negative"] == "blurry"
    assert "was stopped by Reload UI" in seen["told"] and seen["weight"] == "0.6"


def test_hundreds_of_loras(here: tuple[WebUI, str]) -> None:
    webui, url = here
    for number in range(300):
        path = webui.folder / "models" / "Lora" / f"shelf-{number % 10}" / f"number-{number:03}.safetensors"
        random_lora(path, {"lora_unet_conv_in": (4, 4)}, seed=number, size=1, metadata={"ss_output_name": path.stem})
    seen = go(url, "many")
    assert seen["all"] == 300
    assert seen["folder"] == [f"shelf-3/number-{number:03}" for number in range(3, 300, 10)]
    assert seen["one"] == ["shelf-3/number-123"] and seen["trigger"] == "number-123"


@pytest.mark.parametrize("program", EVERY)
def test_on_sdxl_where_a_lora_for_sd1_is_refused(program: Program, tmp_path: Path) -> None:
    with running(tmp_path / "sdxl", "--listen", models=sdxl_models, program=program) as (webui, url):
        sdxl_loras(webui, ("one", "two"))
        shutil.copy(DEMO / "loras" / "penguin.safetensors", tmp_path / "sdxl" / "models" / "Lora" / "old.safetensors")
        seen = go(url, "family")
    assert seen["listed"] == ["one", "two", "old  ·  penguin  ·  ⚠ SD1"]
    reason = "made for SD1, the loaded checkpoint is SDXL"
    assert reason in seen["row"] and f"old cannot be merged: {reason}" in seen["refused"]
    assert "Ready to merge" in seen["checked"] and "Recognised" in seen["result"]
    assert "one-two" in seen["cards"] and "old" not in seen["cards"]
    assert not seen["folder"], "who looks at it may sit elsewhere"
