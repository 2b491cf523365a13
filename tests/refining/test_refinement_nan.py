"""A refinement whose loss is no number: refused with that number, the step and the remedy, and not by anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining.refinement import refine
from lib_loraclr.request.phrases import Part
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests.small import PROMPTS, concept, examples_of, predictor_of


@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf], ids=str)
def test_a_loss_that_is_not_finite_is_refused_with_the_remedy(host: DiffusersHost, demo: Path, value: float) -> None:
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    examples = examples_of(predictor, teachers, PathPlan(Part.LEARN, seed=0, paths=1, steps=2))
    # as a teacher's prediction overflows in half precision
    broken = [replace(own, target=own.target * value) for own in examples]
    start = predictor.deltas[0]
    options = RefinementOptions(Terms(), steps=1, batch_size=2, scene_rows=0, learning_rate=2e-3)
    if value == 1.0:  # the control
        assert refine(predictor, start, broken, examples, options, seed=0).steps == 1
        return
    with pytest.raises(LoraclrError, match=r"loss became (nan|inf) at step 1: lower learning_rate \(0\.002\)"):
        refine(predictor, start, broken, examples, options, seed=0)
