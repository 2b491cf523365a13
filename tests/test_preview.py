"""The picture of a merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lib_loraclr.hosts.base import Host
from lib_loraclr.merge import merge_loras
from lib_loraclr.preview import LABEL, MARGIN, PreviewOptions, preview_grid
from lib_loraclr.progress import Progress
from tests.small import request


class Counted(Progress):
    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def start(self, stage: str, total: int) -> None:
        self.total, self.done = total, 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units


def test_the_picture_has_a_row_per_concept_and_one_per_pair(demo: Path, host: Host) -> None:
    merge = merge_loras(request(demo, "fox-face", "pizza", method="weighted_sum", options={}), host)
    progress = Counted()
    sheet = preview_grid(merge, host, PreviewOptions(steps=2), progress)
    assert progress.done == progress.total, "the bar must end where it said it would"
    cell = 192  # 64 pixels, enlarged so that labels fit
    assert sheet.size == (4 * cell + 5 * MARGIN, LABEL + MARGIN + 3 * (cell + LABEL + MARGIN))
    pixels = np.asarray(sheet, dtype=float)
    top = LABEL + MARGIN + LABEL
    cells = [pixels[top : top + cell, MARGIN + k * (cell + MARGIN) :][:, :cell] for k in range(4)]
    base, alone, together, merged = cells
    assert np.abs(base - alone).mean() > 5, "the LoRA changes the picture"
    # weighted_sum is what all tags together do; fp16 factors round a little
    assert np.abs(together - merged).mean() < 2 < np.abs(alone - merged).mean()
