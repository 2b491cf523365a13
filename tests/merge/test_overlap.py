"""Who will be in whose way: held against retention, which is measured another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_loraclr.merge.overlap import measure_overlap, overlap_evaluations
from lib_loraclr.model.host import Host
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining.retention import measure
from lib_loraclr.request.phrases import Part
from tests.small import examples_of, predictor_of, request


class Counted(Progress):
    total = done = 0

    def start(self, stage: Stage, total: int) -> None:
        if stage is not Stage.READING:
            self.total, self.done = total, 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units


def test_a_share_is_what_retention_with_both_tags_has_lost(demo: Path, host: Host) -> None:
    asked, progress = request(demo, "fox-face", "pizza"), Counted()
    found = measure_overlap(asked, host, paths=1, progress=progress)
    assert progress.done == progress.total == overlap_evaluations(asked, 1), "it says beforehand what it takes"
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers(asked.concepts, asked.prompts)
    examples = examples_of(predictor, teachers, PathPlan(Part.LEARN, 0, 1, 4))
    both = measure(predictor, predictor.together([0, 1]), examples).concepts
    assert found.shares["fox-face", "pizza"] == pytest.approx(1 - both[0], rel=1e-3)
    assert found.shares["pizza", "fox-face"] == pytest.approx(1 - both[1], rel=1e-3)
    assert found.worst == max(found.shares, key=lambda pair: found.shares[pair]) and found.labels == (
        "fox-face",
        "pizza",
    )


def test_what_does_nothing_is_in_nobodys_way(demo: Path, host: Host) -> None:
    asked = request(demo, "fox-face", "pizza")
    weak = replace(asked.concepts[1], te_weight=0.01, unet_weight=0.01)
    found = measure_overlap(replace(asked, concepts=(asked.concepts[0], weak)), host, paths=1)
    assert found.shares["fox-face", "pizza"] < 0.1 < 1 < found.shares["pizza", "fox-face"]


def test_a_style_that_acts_on_everything_moves_nobody(demo: Path, host: Host) -> None:
    """What it changes belongs to what it is applied to; the others may move it all the same."""
    found = measure_overlap(request(demo, "fox-face", "style-mono"), host, paths=1)
    assert set(found.shares) == {("style-mono", "fox-face")}
