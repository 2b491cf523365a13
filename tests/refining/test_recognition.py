"""Whom the merged model draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_loraclr.model.host import Host
from lib_loraclr.progress import Progress
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.scenes import make_scenes
from lib_loraclr.recording.teachers import Teacher, make_teachers
from lib_loraclr.refining.recognition import (
    LEAST_POINTS,
    MOST_POINTS,
    QUESTIONS,
    SCENES,
    Recognition,
    gather_candidates,
    points_of,
    questions,
    recognise,
)
from lib_loraclr.request.phrases import Part
from tests.small import PROMPTS, concept, examples_of, predictor_of

NAMES = ("fox-face", "pizza", "style-clay")
PLAN = PathPlan(Part.MEASURE, seed=5, paths=2, steps=3, partners=True)


class Counted(Progress):
    def __init__(self) -> None:
        self.units = 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.units += units


@pytest.fixture(scope="module")
def lesson(host: Host, demo: Path) -> tuple[Predictor, list[Teacher], list[Examples]]:
    predictor = predictor_of(host, demo, *NAMES)
    teachers = make_teachers([concept(demo, name) for name in NAMES], PROMPTS)
    return predictor, teachers, examples_of(predictor, teachers, PLAN)


def found(lesson: tuple[Predictor, list[Teacher], list[Examples]], deltas: dict, *, guests: bool = True) -> Recognition:
    """
    Args:
        guests: whether a style is looked at on subjects too
    """
    predictor, _, examples = lesson
    examples = [own for own in examples if guests or not own.teacher.guest]
    return recognise(predictor, deltas, gather_candidates(predictor, examples), examples)


def test_a_concepts_own_lora_is_recognised_and_another_is_taken_for_the_other(lesson) -> None:
    predictor = lesson[0]
    for own, other in ((0, 1), (1, 0)):
        # in half precision of what is kept, and with its own text encoder
        seen = found(lesson, predictor.together((own,)))
        assert seen.taken_for[own] == {own: 1.0}
        assert seen.recognised(own) == 1.0
        assert seen.recognised(other) == 0.0, "the other is asked for, and not drawn"


def test_where_the_concept_is_not_there_nobody_is_drawn(lesson) -> None:
    """A style on plain prompts; on a subject's the subject would have to be there, and in one model for all prompts it is not."""
    seen = found(lesson, {}, guests=False)
    assert seen.taken_for == {0: {None: 1.0}, 1: {None: 1.0}, 2: {None: 1.0}}
    assert [seen.recognised(concept) for concept in range(4)] == [0.0, 0.0, 0.0, None]


def test_who_answers_with_anothers_prediction_is_taken_for_that_one(lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that predicts for each what the other's own LoRA would, asked with the other's words."""
    predictor, teachers, examples = lesson
    candidates = gather_candidates(predictor, examples)
    fox, pizza, *clay = candidates
    assert fox.concepts == (1, None) and pizza.concepts == (0, None)
    assert [own.examples.teacher.name for own in clay] == [
        teacher.name for teacher in teachers if teacher.concept == 2
    ], "a style is looked at on plain prompts and on every subject"
    assert len(clay) == 3 and all(own.concepts == (None,) for own in clay)
    for own, other in ((fox, 1), (pizza, 0)):
        few = own.examples
        asked = [teachers[other].prompt(slot) for slot in few.slots]
        expected = predictor.predict((other,), few.x, few.t, asked)
        torch.testing.assert_close(own.predictions[0].float(), expected.float(), atol=5e-3, rtol=5e-3)
        absent = predictor.predict((), few.x, few.t, few.prompts)
        torch.testing.assert_close(own.predictions[1].float(), absent.float(), atol=5e-3, rtol=5e-3)
    on_plain, *on_subjects = clay
    # the style as itself on plain prompts, and as nobody on subjects: its points are counted together
    answers = [fox.predictions[0], pizza.predictions[0], on_plain.examples.target]
    answers += [own.predictions[0] for own in on_subjects]

    def answer(predictor: Predictor, x, t, prompts) -> torch.Tensor:
        for own, prediction in zip(candidates, answers, strict=True):
            if x is own.examples.x:
                return prediction.float()
        return torch.zeros(x.shape)

    monkeypatch.setattr("lib_loraclr.refining.recognition._predict", answer)
    seen = recognise(predictor, {}, candidates, examples)
    itself, nobody = len(on_plain.examples), sum(len(own.examples) for own in on_subjects)
    assert seen.taken_for[0] == {1: 1.0} and seen.taken_for[1] == {0: 1.0}
    assert seen.taken_for[2] == pytest.approx({2: itself / (itself + nobody), None: nobody / (itself + nobody)})
    assert 0 < seen.recognised(2) < 1
    assert seen.recognised(0) == 0.0


def test_two_are_drawn_together_where_both_windows_are_their_own(lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, _, examples = lesson
    scenes = make_scenes(examples, windows=2)
    kinds = {"both": (True, True), "left only": (True, False), "neither": (False, False)}
    for kind, (left, right) in kinds.items():

        def answer(predictor: Predictor, x, t, prompts, left=left, right=right) -> torch.Tensor:
            if x.shape[-1] == examples[0].x.shape[-1]:
                return torch.zeros(x.shape)
            results = []
            for wide in x:
                scene = next(scene for scene in scenes if torch.equal(scene.beside("x"), wide))
                own, other = scene.beside("target").chunk(2, -1), scene.rivals()[0].chunk(2, -1)
                parts = [mine if good else its for mine, its, good in zip(own, other, (left, right), strict=True)]
                results.append(torch.cat(parts, dim=-1).float())
            return torch.stack(results)

        monkeypatch.setattr("lib_loraclr.refining.recognition._predict", answer)
        seen = recognise(predictor, {}, [], examples)
        expected = 1.0 if kind == "both" else 0.0
        assert seen.together == {(0, 1): expected, (1, 0): expected}, kind


@pytest.mark.parametrize("names", [("fox-face",), ("fox-face", "pizza"), NAMES, ("fox-face", "style-mono")])
@pytest.mark.parametrize("paths", [1, 5])
def test_it_takes_as_many_evaluations_as_it_says(host: Host, demo: Path, names: tuple[str, ...], paths: int) -> None:
    background = tuple(k for k, name in enumerate(names) if name == "style-mono")
    predictor = predictor_of(host, demo, *names, background=background)
    predictor.host = Quiet(host)
    teachers = make_teachers([concept(demo, name) for name in names], PROMPTS)
    plan = PathPlan(Part.MEASURE, seed=5, paths=paths, steps=4, partners=True)
    examples = examples_of(predictor, teachers, plan)
    predictor.progress = Counted()
    recognise(predictor, {}, gather_candidates(predictor, examples), examples)
    assert predictor.progress.units == questions(teachers, plan)


class Quiet:
    """A host whose model predicts nothing, in no time."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def denoise(self, x, t, conditioning) -> torch.Tensor:
        return torch.zeros_like(x)

    def __getattr__(self, name: str):
        return getattr(self._host, name)


def test_work_grows_with_the_number_of_concepts_and_not_with_that_of_pairs() -> None:
    plan = PathPlan(Part.MEASURE, 0, paths=4, steps=8, partners=True)

    def asked(count: int) -> int:
        teachers = [Teacher(f"t{k}", k, (k,), f"word{k}") for k in range(count)]
        return questions(teachers, plan)

    assert [points_of(count) for count in (0, 1, 8, 12, 20, 32, 100)] == [16, 16, 16, 10, 6, 4, 4]
    assert (LEAST_POINTS, MOST_POINTS, QUESTIONS) == (4, 16, 128)
    assert asked(2) == 2 * 16 * (1 + 2) + 2 * SCENES
    # with sixteen as many questions are asked of each as with eight
    assert asked(16) < 2.5 * asked(8)
