"""The picture of a merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.host import Host
from lib_loraclr.output import preview, sheet
from lib_loraclr.output.preview import PreviewOptions, draw_pictures
from lib_loraclr.output.sheet import MARGIN, Row, caption_height
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.request.merge_request import Concept, MergeRequest
from lib_loraclr.request.phrases import BANKS, Part, part_of
from tests.small import request


class Counted(Progress):
    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def start(self, stage: Stage, total: int) -> None:
        self.total, self.done = total, 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units


def test_the_picture_has_a_row_per_concept_and_one_per_pair(demo: Path, host: Host) -> None:
    merge = merge_loras(request(demo, "fox-face", "pizza", method="weighted_sum", options={}), host)
    progress = Counted()
    drawn = draw_pictures(merge, host, PreviewOptions(steps=2), progress)
    assert progress.done == progress.total, "the bar must end where it said it would"
    cell = 192  # 64 pixels, enlarged so that captions fit
    line = caption_height(cell)
    # two concepts, each on other words besides, and the pair
    assert drawn.sheet.size == (4 * cell + 5 * MARGIN, line + 5 * (cell + line + MARGIN))
    pixels = np.asarray(drawn.sheet, dtype=float)[..., :3]
    top = 2 * line
    cells = [pixels[top : top + cell, MARGIN + k * (cell + MARGIN) :][:, :cell] for k in range(4)]
    base, alone, together, merged = cells
    assert np.abs(base - alone).mean() > 5, "the LoRA changes the picture"
    # weighted_sum is what all tags together do; fp16 factors round a little
    assert np.abs(together - merged).mean() < 2 < np.abs(alone - merged).mean()
    # two below each other, of which nothing is cut but above and below
    upper = np.asarray(drawn.card.crop((0, 0, 384, 288)).resize((64, 48)), dtype=float)
    shown = np.asarray(Image.fromarray(merged.astype("uint8")).resize((64, 64)), dtype=float)[8:56]
    assert np.abs(upper - shown).mean() < 6 < np.abs(upper - np.flipud(shown)).mean()


def test_the_sheet_has_no_ground_and_captions_that_fit() -> None:
    """It is looked at on a dark page and on a light one."""
    rows = [Row([Image.new("RGB", (64, 64), "red")] * 4, captions) for captions in (["a" * 500], ["a" * 500] * 4)]
    drawn = np.asarray(sheet.lay_out(rows, None))
    line, cell = caption_height(192), 192
    second = line + (cell + line + MARGIN)
    assert not drawn[:, :MARGIN].any() and not drawn[second + line + cell :].any(), "transparent around the pictures"
    assert (drawn[2 * line : 2 * line + cell, MARGIN : MARGIN + cell] == (255, 0, 0, 255)).all()
    for top in (0, line, second):
        ink = drawn[top : top + line][drawn[top : top + line, :, 3] == 255]
        assert len(ink) > 100 and (ink == sheet._INK).all()
        left_over = drawn[top : top + line, -MARGIN:]
        assert not left_over.any(), "the caption ends before the sheet does"
    for place in range(1, 4):
        between = slice(place * (cell + MARGIN), place * (cell + MARGIN) + MARGIN)
        assert not drawn[second : second + line, between].any(), "and that of a picture before the next picture's"
        assert place > 2 or drawn[line : 2 * line, between].any(), "control: one for all goes on"


def _merge(*concepts: Concept) -> Any:
    """As far as what is asked goes by it."""
    return SimpleNamespace(request=MergeRequest(concepts), inputs=())


def test_the_merge_is_shown_on_words_that_nothing_was_learnt_from() -> None:
    fox, hat = Concept("fox.safetensors", trigger="sks animal"), Concept("hat.safetensors", trigger="ohwx hat")
    asked = preview._asked_fresh(_merge(fox, hat))
    assert len(asked) == 8 and len({one.prompt for one in asked}) == 8, "four of each, each another"
    assert all("sks animal" in one.prompt for one in asked[:4]) and all("ohwx hat" in one.prompt for one in asked[4:])
    assert all("fox" in one.caption and "sks" not in one.caption for one in asked[:4]), "by names, not by trigger words"
    learnt = {
        phrase for kind in BANKS["photo"].words.values() for phrase in kind if part_of(phrase) is not Part.MEASURE
    }
    assert not [one for one in asked if any(one.prompt.endswith(phrase) for phrase in learnt)]
    assert any(one.prompt.endswith(tuple(set(_words()) - learnt)) for one in asked), (
        "control: some have words after them"
    )
    many = [Concept(f"{i}.safetensors", trigger=f"word{i}") for i in range(5)]
    assert len(preview._asked_fresh(_merge(*many))) == 10, "of many two each"


def _words() -> list[str]:
    return [phrase for kind in BANKS["photo"].words.values() for phrase in kind]


def test_every_style_is_shown_on_the_first_subjects() -> None:
    subjects = [Concept(f"{name}.safetensors", trigger=f"{name} word") for name in "abcde"]
    ink = Concept("ink.safetensors", trigger="ink style", kind="style")
    asked = preview._asked_styled(_merge(ink, *subjects))
    assert [one.caption for one in asked] == [f"{name} in ink" for name in "abcd"]
    assert asked[0].prompt == "a photo of a word, ink style"
    assert preview._asked_styled(_merge(*subjects)) == [], "no style, no row"
    some = replace(ink, applied_to=("e", "b"))
    assert [one.caption for one in preview._asked_styled(_merge(some, *subjects))] == ["b in ink", "e in ink"]
    fog = Concept("fog.safetensors", trigger="", kind="style")
    assert preview._asked_styled(_merge(fog, subjects[0]))[0].prompt == "a photo of a word", "acts without words"


@pytest.mark.parametrize(
    ("number", "corners"),
    [(1, "0000"), (2, "0011"), (3, "0122"), (4, "0123"), (5, "0144"), (6, "0145"), (7, "0166")],
)
def test_a_card_is_filled_with_merged_pictures_and_has_no_gaps(number: int, corners: str) -> None:
    """The shape is that in which the WebUI shows cards; whatever is not filled would let its NO PREVIEW through."""
    colours = [(10 * i + 40, 200 - 20 * i, 90) for i in range(number)]
    card = sheet.card_of([Image.new("RGB", (128, 128), colour) for colour in colours])
    assert card.mode == "RGB" and card.size == sheet.CARD
    pixels = np.asarray(card)
    assert {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()} == set(colours)
    found = [tuple(pixels[y, x].tolist()) for y in (0, -1) for x in (0, -1)]
    assert found == [colours[int(corner)] for corner in corners]
