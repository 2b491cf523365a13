"""Retention: one for the teacher itself, zero for its absence, and in between an order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_loraclr.model.host import Host
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining.retention import drift_of_singles, measure
from lib_loraclr.request.phrases import Part
from tests.small import PROMPTS, concept, examples_of, predictor_of


def test_retention_is_one_for_the_teacher_itself_and_zero_for_its_absence(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face", "pizza", size=0)
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    examples = examples_of(predictor, teachers, PathPlan(Part.MEASURE, seed=9, paths=1, steps=3))
    drift = drift_of_singles(predictor, examples)
    own = measure(predictor, predictor.together([0]), examples, single_drift=drift)
    assert own.concepts[0] > 0.99
    assert own.concepts[1] < 0.2  # the fox's LoRA does not bring the pizza
    absent = measure(predictor, {}, examples, single_drift=drift)
    assert abs(absent.concepts[0]) < 0.01 and abs(absent.concepts[1]) < 0.01
    assert absent.base_drift < 0.01 < own.base_drift


def test_of_a_style_that_is_called_by_words_is_told_what_they_change(host: Host, demo: Path) -> None:
    """Both LoRAs keep the style, and change almost as much without its words: that is no retention; nor is one without it."""
    predictor = predictor_of(host, demo, "fox-face", "style-clay", size=0)
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "style-clay")], PROMPTS)
    examples = examples_of(predictor, teachers, PathPlan(Part.MEASURE, seed=9, paths=1, steps=3))
    styled = [own for own in examples if own.teacher.concept == 1]
    assert [own.teacher.name for own in styled] == ["style-clay", "style-clay on fox-face"]
    for active in ([0, 1], [0], []):
        wrong = effect = whole = 0.0
        with torch.no_grad(), host.apply(predictor.together(active)):
            for own in styled:
                for k, prompt in enumerate(own.prompts):
                    x, t = own.x[k : k + 1].float(), own.t[k : k + 1]
                    called, uncalled = (
                        host.denoise(x, t, host.encode([words]))[0]
                        for words in (prompt, prompt.removesuffix(", clay style"))
                    )
                    target, other = own.target[k].float(), own.other[k].float()
                    wrong += float((called - uncalled - target + other).square().mean())
                    whole += float((called - target).square().mean())
                    effect += float((target - other).square().mean())
        found = measure(predictor, predictor.together(active), examples).concepts[1]
        assert found == pytest.approx(1 - (wrong / effect) ** 0.5, abs=0.01)
        assert abs(found - (1 - (whole / effect) ** 0.5)) > 0.05, (
            "control: what is drawn where it is called is another figure"
        )
        assert found < 0.5


def test_half_of_a_lora_has_less_than_half_retention_lost(host: Host, demo: Path) -> None:
    """Retention grows with the strength of the concept: an order that a constant would not have."""
    predictor = predictor_of(host, demo, "fox-face", size=0)
    teachers = make_teachers([concept(demo, "fox-face")], PROMPTS)
    examples = examples_of(predictor, teachers, PathPlan(Part.MEASURE, seed=9, paths=1, steps=3))
    deltas = predictor.deltas[0]
    values = [
        measure(predictor, {key: f.scaled(strength) for key, f in deltas.items()}, examples).concepts[0]
        for strength in (0.0, 0.5, 0.9, 1.0)
    ]
    assert values == sorted(values)
    assert values[1] < 0.9 < values[3]
