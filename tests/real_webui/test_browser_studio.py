"""What stands around a merge, in each real WebUI and a real browser.

Needs what `test_browser.py` needs; `LORACLR_REGIONAL_DIR` names a copy of Regional Prompter, which is tried where it is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import VANILLA, go, missing, running
from programs import A1111, EVERY, Program
from webui_process import KEEPING, demo_models

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")
REGIONAL = os.environ.get("LORACLR_REGIONAL_DIR", "")


def _models(folder: Path) -> None:
    demo_models(folder)
    if REGIONAL:
        (folder / "extensions").mkdir(exist_ok=True)
        (folder / "extensions" / "sd-webui-regional-prompter").symlink_to(REGIONAL, target_is_directory=True)


@pytest.fixture(scope="module", params=EVERY)
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, str]]:
    program = request.param
    models = _models if program is A1111 else demo_models
    with running(tmp_path_factory.mktemp("studio"), settings=KEEPING, models=models, program=program) as (_, address):
        yield program, address


@pytest.fixture
def url(here: tuple[Program, str]) -> str:
    return here[1]


@pytest.mark.parametrize(("way", "theme"), [("studio", "light"), ("narrow studio", "dark")])
def test_from_a_card_to_an_arrangement_and_again(here: tuple[Program, str], way: str, theme: str) -> None:
    program, url = here
    regional = REGIONAL and program is A1111
    # with any infotext that is pasted, Regional Prompter's own accordion is called by a name that it does not have
    seen = go(url, way, LORACLR_THEME=theme, known=(*VANILLA, *(("onVisibleCheckboxChange",) if regional else ())))
    assert seen["card"] == ["fox-face"]
    assert "In each other's way" in seen["check"] and "with both tags in one prompt" in seen["check"]
    assert seen["tried"]["pictures"] == 4 and seen["tried"]["at"] == "20%" and "seed 6" in seen["tried"]["text"]
    assert seen["overflow"] <= 0 and seen["tips"] == []
    assert (seen["negative"], seen["sampler"]) == ("ugly", "Euler"), "what stood in txt2img stays there"
    if regional:
        assert "Regional Prompter will be switched on" in seen["note"] and seen["regions"] is False
        assert "RP Active: True" in seen["infotext"] and "RP Ratios: " in seen["infotext"], "and a picture is drawn so"
        assert seen["prompt"].count("BREAK") == 1 == seen["prompt"].count("<lora:") and seen["prompt"].startswith(
            "<lora:fox-face-penguin"
        )
    else:
        assert "Neither Regional Prompter" in seen["note"]
        assert seen["prompt"].startswith("sks animal and ohwx bird, <lora:fox-face-penguin")
    assert "fox-face" in seen["history"] and seen["rows"] == ["fox-face", "penguin"] and seen["method"] == "average"
    axes = ("merged file", "weight of the merged file", "effort of the merged file")
    assert seen["axes"] == [f"[LoRACLR] {axis}" for axis in axes]


@pytest.mark.parametrize(("way", "theme"), [("further", "dark"), ("narrow further", "light")])
def test_a_style_on_some_subjects_outfits_and_refining_further(url: str, way: str, theme: str) -> None:
    seen = go(url, way, LORACLR_THEME=theme)
    assert seen["style"] and not seen["subject"], "what belongs to a style is seen where it is one"
    assert seen["applied"] == "fox-face"
    assert "Before" in seen["refined"] and "Before" not in seen["former"] and "Recognised" in seen["former"]
    assert "Kept as fox-face-penguin-style-clay" in seen["kept"] and seen["overflow"] <= 0


@pytest.mark.parametrize(("way", "theme"), [("night", "light"), ("narrow night", "dark")])
def test_a_queue_that_a_page_finds_again(url: str, way: str, theme: str) -> None:
    seen = go(url, way, LORACLR_THEME=theme)
    assert len(seen["queued"]) == 3 and "%" in seen["queued"][0] and "waits" in seen["queued"][1]
    first, second = seen["kept"]
    assert "LoRACLR (contrastive) · Layers · fox-face, penguin" in first and "kept" in first
    assert "Average · fox-face, penguin" in second and "kept as fox-face-" in second, "nothing is overwritten"
    assert seen["offered"] == [seen["name"]] and seen["name"] in seen["history"]
    assert seen["overflow"] <= 0


@pytest.mark.parametrize("way", ["added", "narrow added"])
def test_a_merge_that_goes_on_and_a_concept_that_is_added(url: str, way: str) -> None:
    seen = go(url, way)
    assert "Nothing was kept" in seen["interrupted"] and "begun again, goes on from it" in seen["interrupted"]
    assert "goes on from before" in seen["doing"]
    assert f"Adds to {seen['name']}, and goes on from its fox-face, penguin" in seen["line"]
    assert f"Goes on from {seen['name']}: as many steps as from nothing, 12." in seen["check"]
    assert "Went on from" in seen["result"] and "pizza" in seen["result"]
    assert seen["rows"] == ["fox-face", "penguin", "pizza"], "what was chosen besides stays"
    assert "MB of at most 2.0 GB" in seen["held"] and "nothing" in seen["emptied"] and seen["overflow"] <= 0
