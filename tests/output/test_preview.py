"""The picture of a merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.host import Host
from lib_loraclr.output import preview
from lib_loraclr.output.preview import MARGIN, PreviewOptions, caption_height, draw_pictures
from lib_loraclr.progress import Progress, Stage
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
    sheet = drawn.sheet
    assert progress.done == progress.total, "the bar must end where it said it would"
    cell = 192  # 64 pixels, enlarged so that captions fit
    line = caption_height(cell)
    assert sheet.size == (4 * cell + 5 * MARGIN, line + 3 * (cell + line + MARGIN))
    pixels = np.asarray(sheet, dtype=float)[..., :3]
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
    rows = [([Image.new("RGB", (64, 64), "red")] * 4, "a" * 500)]
    sheet = np.asarray(preview._lay_out(rows, None))
    line, cell = caption_height(192), 192
    assert not sheet[:, :MARGIN].any() and not sheet[2 * line + cell :].any(), "transparent around the pictures"
    assert (sheet[2 * line : 2 * line + cell, MARGIN : MARGIN + cell] == (255, 0, 0, 255)).all()
    for top in (0, line):
        ink = sheet[top : top + line][sheet[top : top + line, :, 3] == 255]
        assert len(ink) > 100 and (ink == preview._INK).all()
        left_over = sheet[top : top + line, -MARGIN:]
        assert not left_over.any(), "the caption ends before the sheet does"


@pytest.mark.parametrize(
    ("number", "corners"),
    [(1, "0000"), (2, "0011"), (3, "0122"), (4, "0123"), (5, "0144"), (6, "0145"), (7, "0166")],
)
def test_a_card_is_filled_with_merged_pictures_and_has_no_gaps(number: int, corners: str) -> None:
    """The shape is that in which the WebUI shows cards; whatever is not filled would let its NO PREVIEW through."""
    colours = [(10 * i + 40, 200 - 20 * i, 90) for i in range(number)]
    card = preview.card_of([Image.new("RGB", (128, 128), colour) for colour in colours])
    assert card.mode == "RGB" and card.size == preview.CARD
    pixels = np.asarray(card)
    assert {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()} == set(colours)
    found = [tuple(pixels[y, x].tolist()) for y in (0, -1) for x in (0, -1)]
    assert found == [colours[int(corner)] for corner in corners]
