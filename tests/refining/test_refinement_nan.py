"""A refinement whose loss is no number: refused with that number, the step and the remedy, and not by anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.progress import Progress
from lib_loraclr.recording.examples import PathPlan, record_examples
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining.refinement import refine
from lib_loraclr.request.merge_request import RecordingOptions
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests.small import PROMPTS, concept


@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf], ids=str)
def test_a_loss_that_is_not_finite_is_refused_with_the_remedy(host: DiffusersHost, demo: Path, value: float) -> None:
    concepts = [concept(demo, "fox-face"), concept(demo, "pizza")]
    predictor = Predictor(
        host,
        [given.deltas for given in load_inputs(concepts, host)],
        RecordingOptions(guidance=4.0, height=64, width=64),
        negative_prompt="",
        background=(),
        memory=1 << 30,
        progress=Progress(),
    )
    plan = PathPlan(paths=1, steps=2, kept=2, effects=2, seed=0)
    examples = [record_examples(predictor, teacher, plan) for teacher in make_teachers(concepts, PROMPTS)]
    # as a teacher's prediction overflows in half precision
    broken = [replace(own, target=own.target * value) for own in examples]
    start = predictor.deltas[0]
    options = RefinementOptions(Terms(), steps=1, batch_size=2, learning_rate=2e-3)
    if value == 1.0:  # the control
        assert refine(predictor, start, broken, examples, options, seed=0).steps == 1
        return
    with pytest.raises(LoraclrError, match=r"loss became (nan|inf) at step 1: lower learning_rate \(0\.002\)"):
        refine(predictor, start, broken, examples, options, seed=0)
