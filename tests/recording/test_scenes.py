"""Scenes: what teachers predict side by side."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lib_loraclr.model.host import Host
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.path_plan import PathPlan, draw_slots
from lib_loraclr.recording.scenes import count_pairs, make_scenes
from lib_loraclr.recording.teachers import Teacher, make_teachers
from lib_loraclr.request.phrases import Part, Phrases
from tests.small import PROMPTS, concept, examples_of, predictor_of

#: half precision of what is kept
CLOSE = {"atol": 5e-3, "rtol": 5e-3}
NAMES = ("fox-face", "pizza", "penguin")


@pytest.fixture(scope="module")
def lesson(host: Host, demo: Path) -> tuple[list[Teacher], list[Examples]]:
    predictor = predictor_of(host, demo, *NAMES)
    teachers = make_teachers([concept(demo, name) for name in NAMES], PROMPTS)
    plan = PathPlan(Part.LEARN, seed=2, paths=2, steps=2, renoised=2, negative_every=4, partners=True)
    return teachers, examples_of(predictor, teachers, plan)


def numbered(count: int, points: int = 12, *, absent: Sequence[int] = ()) -> list[Examples]:
    """Examples of so many subjects whose latents hold the number of their subject and of their slot."""
    subjects = list(range(count))
    plan = PathPlan(Part.LEARN, 0, paths=1, steps=2, renoised=points - 2)
    slots = draw_slots(plan, Phrases("photo", Part.LEARN, templates=["{trigger}"], seed=0), subjects)
    results = []
    for k in subjects:
        x = (100 * k + torch.arange(points).half())[:, None, None, None].expand(points, 4, 2, 3)
        has = torch.tensor([k in slot.partner for slot in slots])
        other = 100 * torch.tensor([slot.partner.get(k, 0) for slot in slots]).half()[:, None, None, None] + x % 100
        teacher = Teacher(f"t{k}", k, (k,), f"word{k}")
        own = Examples(
            teacher,
            tuple(slots),
            tuple(teacher.prompt(slot) for slot in slots),
            x,
            torch.arange(points),
            x + 0.5,
            torch.ones(points),
            other + 0.5,
            has,
        )
        results.append(own.select(torch.tensor([i for i in range(points) if i not in absent])) if k == 0 else own)
    return results


def test_a_collage_is_what_each_lora_predicts_in_its_own_window(
    host: Host, demo: Path, lesson: tuple[list[Teacher], list[Examples]]
) -> None:
    """The slow second way: every window run by itself, by the model with that LoRA, in that LoRA's words."""
    teachers, examples = lesson
    predictor = predictor_of(host, demo, *NAMES)
    scenes = make_scenes(examples, windows=2)
    assert scenes
    width = examples[0].x.shape[-1]
    for scene in scenes:
        x, target = scene.beside("x"), scene.beside("target")
        assert x.shape == target.shape == (4, 8, 2 * width)
        rivals, there = scene.rivals()
        slot = scene.points[0][0].slots[scene.points[0][1]]
        assert there.tolist() == [not slot.negative] * 2
        left, right = scene.subjects
        assert slot.partner[left] == right and slot.partner[right] == left
        for window, (own, other) in enumerate(((left, right), (right, left))):
            part = slice(window * width, (window + 1) * width)
            t = torch.tensor([int(scene.points[window][0].t[scene.points[window][1]])])
            found = []
            for subject in (own, other):
                active, prompt = ((), "") if slot.negative else ((subject,), teachers[subject].prompt(slot))
                with torch.no_grad(), host.apply(predictor.together(active)):
                    asked = host.encode([prompt])
                    found.append(host.denoise(x[None, ..., part].float(), t, asked)[0])
            torch.testing.assert_close(target[..., part].float(), found[0], **CLOSE)
            torch.testing.assert_close(rivals[..., part].float(), found[1], **CLOSE)
            assert slot.negative or not torch.allclose(found[0], found[1], **CLOSE), "control: they are not the same"
    negative = [scene for scene in scenes if scene.points[0][0].slots[scene.points[0][1]].negative]
    assert 0 < len(negative) < len(scenes) and {scene.prompt for scene in negative} == {""}


def test_the_prompt_names_the_subjects_in_the_order_of_their_windows(
    lesson: tuple[list[Teacher], list[Examples]],
) -> None:
    teachers, examples = lesson
    for windows in (2, 3):
        for scene in make_scenes([own.called for own in examples], windows=windows):
            words = [teachers[subject].words for subject in scene.subjects]
            places = [scene.prompt.index(word) for word in words]
            assert places == sorted(places) and len(set(places)) == windows
            slot = scene.points[0][0].slots[scene.points[0][1]]
            assert scene.prompt == slot.phrase.asking(*words)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_two_stand_beside_each_other_in_both_orders(count: int) -> None:
    examples = numbered(count)
    rows = [(scene.points[0][1], scene.subjects) for scene in make_scenes(examples, windows=2)]
    expected = [
        (slot.number, pair)
        for slot in examples[0].slots
        for pair in itertools.permutations(range(count), 2)
        if slot.partner.get(pair[0]) == pair[1]
    ]
    assert sorted(rows) == sorted(expected)
    assert Counter(rows) == Counter((number, pair[::-1]) for number, pair in rows)


def test_there_are_as_many_scenes_as_subjects_and_not_as_pairs() -> None:
    counts = {count: len(make_scenes(numbered(count), windows=2)) for count in (2, 4, 8, 16)}
    assert counts == {count: 12 * count for count in counts}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6])
def test_how_many_scenes_of_two_there_will_be_is_known_before(count: int) -> None:
    assert count_pairs(12, count) == len(make_scenes(numbered(count), windows=2))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_of_three_windows_two_are_partners_and_the_third_is_someone_else(count: int) -> None:
    places, thirds = Counter(), Counter()
    for scene in make_scenes(numbered(count), windows=3):
        slot = scene.points[0][0].slots[scene.points[0][1]]
        subjects = scene.subjects
        assert len(set(subjects)) == 3 == len(scene.points)
        _, there = scene.rivals()
        met = [k for k in range(3) if slot.partner.get(subjects[k]) in subjects]
        assert there.tolist() == [k in met for k in range(3)] and len(met) == 2
        (third,) = set(range(3)) - set(met)
        places[third] += 1
        thirds[subjects[third]] += 1
    assert set(places) == {0, 1, 2}, "at either end and in the middle"
    assert set(thirds) == set(range(count))


@pytest.mark.parametrize("count", [3, 4, 7])
def test_three_stand_in_every_order_as_often(count: int) -> None:
    """Whoever stands beside whom in which slot: of 3 and 4 subjects there are three rounds of meetings, of 7 seven."""
    found = Counter(scene.subjects for scene in make_scenes(numbered(count, points=600), windows=3))
    orders = list(itertools.permutations(range(count), 3))
    assert set(found) == set(orders)
    expected = found.total() / len(orders)
    apart = sum((number - expected) ** 2 / expected for number in found.values())
    degrees = len(orders) - 1
    assert apart < degrees + 4 * (2 * degrees) ** 0.5, "chi squared of throws of a fair die"


def test_columns_stand_side_by_side_in_the_order_of_the_windows() -> None:
    for scene in make_scenes(numbered(3), windows=3):
        number = scene.points[0][1]
        for column, more in (("x", 0.0), ("target", 0.5)):
            beside = scene.beside(column)
            assert beside.shape == (4, 2, 9)
            for window, subject in enumerate(scene.subjects):
                assert (
                    beside[..., 3 * window : 3 * window + 3] == torch.tensor(100 * subject + number + more).half()
                ).all()
        rivals, there = scene.rivals()
        for window, subject in enumerate(scene.subjects):
            rival = scene.points[0][0].slots[number].partner.get(subject) if there[window] else subject
            expected = torch.tensor(100 * rival + number + 0.5).half()
            assert (rivals[..., 3 * window : 3 * window + 3] == expected).all(), "without a rival its own target stands"


def test_there_are_none_of_fewer_subjects_than_windows_or_of_what_is_not_a_subject() -> None:
    one, two, three = numbered(1), numbered(2), numbered(3)
    assert make_scenes(one, windows=2) == make_scenes(two, windows=3) == make_scenes([], windows=2) == []
    style = copy.copy(three[2])
    object.__setattr__(style, "teacher", Teacher("style", 2, (2,), "word2", style="clay"))
    assert {s for scene in make_scenes([*two, style], windows=2) for s in scene.subjects} == {0, 1}
    assert make_scenes([*two, style], windows=3) == []


def test_a_slot_that_one_of_them_has_no_point_in_makes_no_scene() -> None:
    """Found by the number of the slot, and not by its place among the points."""
    for scene in make_scenes(numbered(2, absent=(0, 3)), windows=2):
        numbers = {own.slots[k].number for own, k in scene.points}
        assert len(numbers) == 1 and not numbers & {0, 3}
    assert len(make_scenes(numbered(2, absent=(0, 3)), windows=2)) == 2 * 10
