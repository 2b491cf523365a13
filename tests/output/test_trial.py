"""A prompt that a person tries on a result that is no file yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.host import Host
from lib_loraclr.output.drawing import Drawing
from lib_loraclr.output.trial import Trial, draw_trial, plan_trial
from lib_loraclr.progress import Progress, Stage
from tests.small import request


class Counted(Progress):
    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def start(self, stage: Stage, total: int) -> None:
        self.total = total

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units


def test_each_seed_is_drawn_with_each_model_alike(demo: Path, host: Host) -> None:
    merge = merge_loras(request(demo, "fox-face", "pizza", method="weighted_sum", options={}), host)
    drawing = Drawing(64, 128, steps=2)
    trial = Trial.of("sks animal\n on a beach ", 7, 3, drawing)
    assert trial.prompt == "sks animal on a beach" and trial.seeds == (7, 8, 9)
    progress = Counted()
    base, merged, again = draw_trial(trial, [{}, merge.factors, merge.factors], host, progress)
    assert progress.done == progress.total == plan_trial(trial, models=3).units
    assert [picture.size for picture in merged] == [(128, 64)] * 3
    pixels = [[np.asarray(picture, dtype=float) for picture in own] for own in (base, merged, again)]
    for k in range(3):
        assert (pixels[1][k] == pixels[2][k]).all() and np.abs(pixels[0][k] - pixels[1][k]).mean() > 2
    assert np.abs(pixels[1][0] - pixels[1][1]).mean() > 2, "each seed another picture"
    [[alone]] = draw_trial(Trial.of("sks animal on a beach", 8, 1, drawing), [merge.factors], host, Progress())
    # the same picture whatever else is drawn beside it, but for how sums are rounded in another batch
    assert np.abs(np.asarray(alone, dtype=float) - pixels[1][1]).mean() < 1


@pytest.mark.parametrize(
    ("prompt", "seed", "pictures", "changes", "told"),
    [
        ("  ", 0, 1, {}, "no prompt to try"),
        ("a fox <lora:fox:0.8>", 0, 1, {}, r"has a tag in it \(<lora:fox:0.8>\)"),
        ("a fox", 0, 17, {}, "number of pictures is 17: give one from 1 to 16"),
        ("a fox", -2, 1, {}, "seed is -2"),
        ("a fox", 0, 1, {"height": 100}, "height of the pictures is 100: give a multiple of 64"),
        ("a fox", 0, 1, {"width": 4096}, "width of the pictures is 4096: give a number from 64 to 2048"),
        ("a fox", 0, 1, {"steps": 1}, "steps of the pictures is 1"),
        ("a fox", 0, 1, {"guidance": 99.0}, "guidance of the pictures is 99.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(
    prompt: str, seed: int, pictures: int, changes: dict[str, float], told: str
) -> None:
    drawing = Drawing(**{"height": 64, "width": 64, **changes})
    with pytest.raises(LoraclrError, match=told):
        Trial.of(prompt, seed, pictures, drawing)
