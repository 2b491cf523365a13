"""Scenes that the merge draws itself, and what the teachers say where it comes by."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import concatenate
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.rollouts import ask_along, draw_paths, plan_rollouts, rollout_evaluations
from lib_loraclr.recording.sampling import BATCH, sample, timesteps
from lib_loraclr.recording.scenes import Scene, make_scenes
from lib_loraclr.recording.teachers import Teacher, make_teachers
from lib_loraclr.request.phrases import Part
from tests.small import PROMPTS, concept, examples_of, predictor_of

#: half precision of what is kept
CLOSE = {"atol": 5e-3, "rtol": 5e-3}
NAMES = ("fox-face", "pizza", "penguin")
STEPS = 3


@pytest.fixture(scope="module")
def lesson(host: Host, demo: Path) -> tuple[Predictor, list[Teacher], list[Examples]]:
    predictor = predictor_of(host, demo, *NAMES)
    teachers = make_teachers([concept(demo, name) for name in NAMES], PROMPTS)
    plan = PathPlan(Part.LEARN, seed=2, paths=3, steps=4, negative_every=4, partners=True)
    return predictor, teachers, examples_of(predictor, teachers, plan)


def merged(predictor: Predictor) -> dict:
    """A merge that changes something: half of every LoRA."""
    keys = set().union(*predictor.deltas)
    return {key: concatenate([own[key] for own in predictor.deltas if key in own]) for key in keys}


def called(scenes: list[Scene]) -> set[str]:
    return {scene.prompt for scene in scenes if not scene.negative}


@pytest.mark.parametrize("windows", [2, 3])
def test_rows_of_subjects_have_equal_turns_and_are_asked_in_words_of_scenes_of_their_own(
    lesson: tuple[Predictor, list[Teacher], list[Examples]], windows: int
) -> None:
    scenes = make_scenes(lesson[2], windows=windows)
    rows = {scene.subjects for scene in scenes if not scene.negative}
    plan = plan_rollouts(scenes, 2 * len(rows) + 1, steps=STEPS, seed=7)
    turns = Counter(own.asked[0].subjects for own in plan)
    assert set(turns) == rows and sorted(turns.values()) == [2] * (len(rows) - 1) + [3]
    assert [own.seed for own in plan] == list(range(7, 7 + len(plan)))
    for own in plan:
        assert own.windows == windows and len(own.asked) == STEPS
        assert {scene.subjects for scene in own.asked} == {own.asked[0].subjects}
        assert own.prompt in called([s for s in scenes if s.subjects == own.asked[0].subjects]), (
            "none is drawn by nothing"
        )
    assert any(scene.negative for own in plan for scene in own.asked), "but asked by the negative prompt too"
    assert (
        plan
        == plan_rollouts(scenes, len(plan), steps=STEPS, seed=7)
        != plan_rollouts(scenes, len(plan), steps=STEPS, seed=8)
    )


def test_of_few_pictures_every_subject_has_as_many(lesson: tuple[Predictor, list[Teacher], list[Examples]]) -> None:
    scenes = make_scenes(lesson[2], windows=2)
    for seed in range(5):
        met = Counter(c for own in plan_rollouts(scenes, 3, steps=1, seed=seed) for c in own.asked[0].subjects)
        assert met == {0: 2, 1: 2, 2: 2}


def test_nothing_is_drawn_where_there_is_no_scene() -> None:
    assert plan_rollouts([], 5, steps=STEPS, seed=0) == []


def test_the_paths_are_those_of_its_pictures(
    host: Host, lesson: tuple[Predictor, list[Teacher], list[Examples]]
) -> None:
    """The slow second way: pictures that are drawn with so many steps less, whose noise is what is left."""
    predictor, _, examples = lesson
    plan = plan_rollouts(make_scenes(examples, windows=2), BATCH + 1, steps=STEPS, seed=7)
    factors = merged(predictor)
    paths = draw_paths(predictor, factors, plan)
    assert paths.shape == (BATCH + 1, STEPS, 4, 8, 16) and paths.dtype == torch.float16
    for k in (0, BATCH):  # of the first part, and of the second
        own = plan[k]
        seen: list[torch.Tensor] = []
        denoise = host.denoise

        def noted(x, t, conditioning, seen=seen, denoise=denoise):  # noqa: ANN001, ANN202
            seen.append(x[:1].clone())
            return denoise(x, t, conditioning)

        with pytest.MonkeyPatch.context() as patch, host.apply(factors):
            patch.setattr(host, "denoise", noted)
            sample(host, [own.prompt], [own.seed], size=(64, 128), steps=STEPS, guidance=4.0)
        torch.testing.assert_close(paths[k].float(), torch.cat(seen), **CLOSE)
    plain = draw_paths(predictor, {}, plan[:1])
    torch.testing.assert_close(plain[:, 0], paths[:1, 0])
    assert not torch.allclose(plain[:, -1], paths[:1, -1], **CLOSE), "control: it is the merge that draws"


@pytest.mark.parametrize("windows", [2, 3])
def test_at_every_step_each_window_is_asked_as_its_own_lora_and_its_partner_would_see_it(
    host: Host, lesson: tuple[Predictor, list[Teacher], list[Examples]], windows: int
) -> None:
    """The slow second way: every window run by itself, by the model with that LoRA, in that LoRA's words."""
    predictor, teachers, examples = lesson
    plan = plan_rollouts(make_scenes(examples, windows=windows), BATCH + 1, steps=STEPS, seed=7)
    paths = torch.randn(len(plan), STEPS, 4, 8, 8 * windows, generator=torch.Generator().manual_seed(0)).half()
    scenes = ask_along(predictor, plan, paths, teachers)
    assert len(scenes) == len(plan) * STEPS
    schedule, negatives = timesteps(STEPS, len(host.alphas_cumprod)), 0
    for k, scene in enumerate(scenes):
        picture, step = divmod(k, STEPS)
        like = plan[picture].asked[step]
        assert (scene.prompt, scene.subjects, scene.negative) == (like.prompt, like.subjects, like.negative)
        assert int(scene.t) == schedule[step]
        assert torch.equal(scene.beside("x"), paths[picture, step])
        negatives += scene.negative
        if k % 5 and not scene.negative:
            continue
        target, (rivals, there) = scene.beside("target"), scene.rivals()
        for window, subject in enumerate(scene.subjects):
            part = slice(8 * window, 8 * window + 8)
            own, point = scene.points[window]
            slot = own.slots[point]
            partner = slot.partner.get(subject)
            assert bool(there[window]) == (partner in scene.subjects and not scene.negative)
            for asked, found in ((subject, target), (partner if there[window] else subject, rivals)):
                active, prompt = ((), "") if scene.negative else ((asked,), teachers[asked].prompt(slot))
                with torch.no_grad(), host.apply(predictor.together(active)):
                    x = paths[picture, step][None, ..., part].float()
                    expected = host.denoise(x, scene.t[None], host.encode([prompt]))[0]
                torch.testing.assert_close(found[..., part].float(), expected, **CLOSE)
    assert 0 < negatives < len(scenes)


def test_how_many_evaluations_it_takes_is_known_before(
    host: Host, lesson: tuple[Predictor, list[Teacher], list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most: by the negative prompt no partner is asked."""
    predictor, teachers, examples = lesson
    count, denoise = Counter(), host.denoise

    def counted(x, t, conditioning):  # noqa: ANN001, ANN202
        count[0] += x.shape[0] * x.shape[-1] // 8
        return denoise(x, t, conditioning)

    monkeypatch.setattr(host, "denoise", counted)
    scenes = make_scenes([own.called for own in examples], windows=2)
    plan = plan_rollouts(scenes, 4, steps=STEPS, seed=7)
    ask_along(predictor, plan, draw_paths(predictor, {}, plan), teachers)
    assert count[0] == 4 * rollout_evaluations(2, STEPS)
