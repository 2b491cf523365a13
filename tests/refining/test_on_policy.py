"""The scenes that the merge draws itself on a refinement's way."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.rollouts import Rollout, rollout_evaluations
from lib_loraclr.recording.scenes import Scene, make_scenes
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining import on_policy
from lib_loraclr.refining.batches import Sampler
from lib_loraclr.refining.on_policy import OwnScenes, evaluations, fitting, pictures
from lib_loraclr.refining.refinement import ROLLOUTS_AFTER, refine
from lib_loraclr.request.phrases import Part
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests.small import PROMPTS, concept, examples_of, predictor_of

NAMES = ("fox-face", "pizza", "penguin")
#: a look after every second step
OPTIONS = RefinementOptions(Terms(), steps=12, batch_size=1, scene_rows=2, learning_rate=2e-3, rollouts=1)


@pytest.fixture(scope="module")
def lesson(host: Host, demo: Path) -> tuple[Predictor, list[Examples]]:
    predictor = predictor_of(host, demo, *NAMES)
    teachers = make_teachers([concept(demo, name) for name in NAMES], PROMPTS)
    return predictor, examples_of(predictor, teachers, PathPlan(Part.LEARN, seed=0, paths=2, steps=2, partners=True))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_policy, "STEPS", 2)


def start_of(predictor: Predictor) -> dict[str, Factors]:
    return {key: Factors(0.2 * f.up, f.down) for key, f in predictor.deltas[0].items()}


def scenes_of(examples: Sequence[Examples]) -> dict[int, list[Scene]]:
    return {windows: make_scenes(examples, windows=windows) for windows in (2, 3)}


@pytest.mark.usefixtures("short")
def test_it_draws_after_some_checks_with_what_it_has_learnt_by_then(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    drawn, steps, draw, rows = [], [], on_policy.draw_paths, Sampler.draw

    def noted(predictor: Predictor, factors: Mapping[str, Factors], rollouts: Sequence[Rollout]) -> Tensor:
        drawn.append((len(steps), rollouts[0].windows, {key: f.up.detach().clone() for key, f in factors.items()}))
        return draw(predictor, factors, rollouts)

    def counted(sampler: Sampler) -> list:
        steps.append(sampler)
        return rows(sampler)

    monkeypatch.setattr(on_policy, "draw_paths", noted)
    monkeypatch.setattr(Sampler, "draw", counted)
    start = start_of(predictor)
    refine(predictor, start, examples, examples, OPTIONS, seed=0)
    assert [(made, windows) for made, windows, _ in drawn] == [(2 * n, k) for n in ROLLOUTS_AFTER for k in (2, 3)]
    learnt = [max(float((factors[key] - f.up).abs().max()) for key, f in start.items()) for _, _, factors in drawn]
    assert 1e-4 < learnt[0] == learnt[1] != learnt[2] > 1e-4
    [sampler] = set(steps)
    assert set(sampler._own) == {2, 3} and not sampler._coming


@pytest.mark.usefixtures("short")
def test_the_last_step_is_followed_by_no_drawing(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    drawn = []
    monkeypatch.setattr(on_policy, "draw_paths", lambda *_: drawn.append(1))
    steps = ROLLOUTS_AFTER[0]  # a check after each
    refine(predictor, start_of(predictor), examples, examples, replace(OPTIONS, steps=steps), seed=0)
    assert not drawn


@pytest.mark.usefixtures("short")
def test_what_the_teachers_say_there_is_learnt_from(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson
    start = start_of(predictor)
    one, again, without = (
        refine(predictor, start, examples, examples, replace(OPTIONS, rollouts=rollouts), seed=0)
        for rollouts in (1, 1, 0)
    )
    for found, same in ((again, True), (without, False)):
        assert all(torch.equal(one.factors[key].up, found.factors[key].up) for key in start) == same
    assert [own["retention"] for own in one.history[: ROLLOUTS_AFTER[0]]] == [
        own["retention"] for own in without.history[: ROLLOUTS_AFTER[0]]
    ]


@pytest.mark.usefixtures("short")
def test_of_its_state_come_the_same_scenes_again(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson

    def own(seed: int = 3) -> OwnScenes:
        return OwnScenes(predictor, examples, scenes_of(examples), 2, seed=seed, after=(5, 9))

    first, second = own(), own()
    assert first.draw({}, 4) == first.state() == first.restore({}) == {}, "nothing before it is drawn"
    drawn = {5: first.draw(start_of(predictor), 5)}
    half = first.state()
    drawn[9] = first.draw({}, 9)
    for scenes in drawn.values():
        assert {windows: len(of) for windows, of in scenes.items()} == {
            windows: 2 * count for windows, count in pictures(3, 2).items()
        }
    assert not torch.equal(drawn[5][2][0].beside("x"), drawn[9][2][0].beside("x")), "other noise each time"
    assert list(own().restore(half)) == [5]
    restored = second.restore(first.state())
    assert list(restored) == [5, 9] and second.state().keys() == first.state().keys()
    for step, scenes in drawn.items():
        for windows, of in scenes.items():
            for one, other in zip(of, restored[step][windows], strict=True):
                assert one.prompt == other.prompt and one.subjects == other.subjects and torch.equal(one.t, other.t)
                for column in ("x", "target"):
                    assert torch.equal(one.beside(column), other.beside(column))
    elsewhere = own(4).draw(start_of(predictor), 5)
    assert not torch.equal(elsewhere[2][0].beside("x"), drawn[5][2][0].beside("x")), "control: of another seed"


def test_only_so_many_are_drawn_as_there_are_subjects_for_and_room() -> None:
    assert pictures(0, 6) == pictures(1, 6) == pictures(4, 0) == {}
    assert set(pictures(2, 6)) == {2} and set(pictures(3, 6)) == {2, 3} and pictures(4, 6)[2] == 24
    assert evaluations(2, 5) == 10 * rollout_evaluations(2, on_policy.STEPS)
    assert evaluations(12, 6) == 3 * evaluations(4, 6), "in proportion to the subjects"


def test_the_memory_budget_bounds_what_is_drawn(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson
    small = copy.copy(predictor)
    scenes = OwnScenes(predictor, examples, scenes_of(examples), 4, seed=0, after=(1,)).draw({}, 1)
    taken = [
        tensor for own in scenes.values() for scene in own for tensor in (scene.beside("x"), scene.beside("target"))
    ]
    paths = sum(tensor.nbytes for tensor in taken) // 2
    small.memory = 2 * (4 * paths)  # of which half is for this: with rivals and paths exactly enough
    assert fitting(small, 3, 4) == 4
    small.memory -= 1
    assert fitting(small, 3, 4) == 3
    small.memory = 1
    assert fitting(small, 3, 4) == 0
    assert OwnScenes(small, examples, scenes_of(examples), 4, seed=0, after=(1,)).draw({}, 1) == {}
