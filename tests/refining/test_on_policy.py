"""The scenes that the merge draws itself, in the middle of a refinement."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.recording.examples import Examples, PathPlan
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.rollouts import rollout_evaluations
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
def test_it_draws_once_after_the_check_before_the_middle_with_what_it_has_learnt_by_then(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    drawn, steps, draw, rows = [], [], OwnScenes.draw, Sampler.draw

    def noted(own: OwnScenes, factors: Mapping[str, Factors]) -> dict[int, list[Scene]]:
        drawn.append((len(steps), {key: f.up.detach().clone() for key, f in factors.items()}))
        return draw(own, factors)

    def counted(sampler: Sampler) -> list:
        steps.append(sampler)
        return rows(sampler)

    monkeypatch.setattr(OwnScenes, "draw", noted)
    monkeypatch.setattr(Sampler, "draw", counted)
    start = start_of(predictor)
    refine(predictor, start, examples, examples, OPTIONS, seed=0)
    [(made, factors)] = drawn
    assert made == 2 * ROLLOUTS_AFTER == 6
    assert max(float((factors[key] - f.up).abs().max()) for key, f in start.items()) > 1e-4
    assert len(set(steps)) == 1 and set(steps[0]._own) == {2, 3}


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
    assert [own["retention"] for own in one.history[:ROLLOUTS_AFTER]] == [
        own["retention"] for own in without.history[:ROLLOUTS_AFTER]
    ]


@pytest.mark.usefixtures("short")
def test_of_its_state_come_the_same_scenes_again(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson

    def own() -> OwnScenes:
        return OwnScenes(predictor, examples, scenes_of(examples), 2, seed=3, after=1)

    first, second = own(), own()
    assert first.state() == {} and first.restore({}) == {}, "nothing before it is drawn"
    drawn = first.draw(start_of(predictor))
    assert {windows: len(scenes) for windows, scenes in drawn.items()} == {
        windows: count * 2 for windows, count in pictures(3, 2).items()
    }
    restored = second.restore(first.state())
    for windows, scenes in drawn.items():
        for one, other in zip(scenes, restored[windows], strict=True):
            assert one.prompt == other.prompt and one.subjects == other.subjects and torch.equal(one.t, other.t)
            for column in ("x", "target"):
                assert torch.equal(one.beside(column), other.beside(column))
    assert second.state().keys() == first.state().keys()
    elsewhere = OwnScenes(predictor, examples, scenes_of(examples), 2, seed=4, after=1).draw(start_of(predictor))
    assert not torch.equal(elsewhere[2][0].beside("x"), drawn[2][0].beside("x")), "control: of another seed"


def test_only_so_many_are_drawn_as_there_are_subjects_for_and_room() -> None:
    assert pictures(0, 6) == pictures(1, 6) == pictures(4, 0) == {}
    assert set(pictures(2, 6)) == {2} and set(pictures(3, 6)) == {2, 3} and pictures(4, 6)[2] == 24
    assert evaluations(2, 5) == 10 * rollout_evaluations(2, on_policy.STEPS)
    assert evaluations(12, 6) == 3 * evaluations(4, 6), "in proportion to the subjects"


def test_the_memory_budget_bounds_what_is_drawn(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson
    small = copy.copy(predictor)
    scenes = OwnScenes(predictor, examples, scenes_of(examples), 4, seed=0, after=1).draw({})
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
    assert OwnScenes(small, examples, scenes_of(examples), 4, seed=0, after=1).draw({}) == {}
