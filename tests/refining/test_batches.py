"""What is compared in each step: turns, scenes, and what guidance subtracts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.scenes import make_scenes
from lib_loraclr.recording.teachers import Slot, Teacher
from lib_loraclr.refining.batches import (
    OWN_SHARE,
    SCENE_WEIGHT,
    TRIPLE_EVERY,
    Batch,
    Sampler,
    StyleBatch,
    _Turns,
    scales,
    spread_levels,
    style_rows,
)
from lib_loraclr.request.phrases import Part, Phrase
from lib_loraclr.solving.objective import RefinementOptions, Terms

OPTIONS = RefinementOptions(Terms(), steps=4, batch_size=8, scene_rows=4, learning_rate=1e-3)


def numbered(
    count: int,
    name: str,
    concept: int | None = 0,
    *,
    of: int = 0,
    style: str = "",
    effect: float = 2.0,
    importance: float = 1.0,
) -> Examples:
    """Examples whose latents hold their own number (and a thousand times their concept's), so that a draw can be told.

    Args:
        of: number of subjects, which stand beside the next (and the previous) in every slot; 0 for none beside it

    At every third point the negative prompt is asked, "ugly", and the target is the latent's opposite. Without a style and its
    words 3 is predicted more than the number.
    """
    numbers = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 4, 2, 2) + 1000 * (
        concept or 0
    )
    partner = {k: k ^ 1 for k in range(of - of % 2)}
    slots = tuple(Slot(k, Part.LEARN, Phrase("{}"), partner, negative=k % 3 == 2) for k in range(count))
    negative = torch.tensor([slot.negative for slot in slots])
    words = "" if concept is None else name
    teacher = Teacher(name, concept, (0,), words, style=style, importance=importance, by_words=bool(style))
    has = torch.full((count,), bool(style) or (bool(of) and concept in partner)) & ~negative
    other = numbers - 1000 * (concept or 0) + 1000 * partner.get(concept, 0) + 1 if has.any() else None
    other = numbers + 3 if style else other
    effects = torch.full((count,), effect if concept is not None else torch.nan)
    prompts = tuple("ugly" if slot.negative else name for slot in slots)
    target = torch.where(negative[:, None, None, None], -numbers, numbers + 1)
    return Examples(teacher, slots, prompts, numbers, torch.arange(count), target, effects, other, has)


def subjects(count: int, points: int = 6, **changes: float) -> list[Examples]:
    return [numbered(points, f"t{k}", k, of=count, **changes) for k in range(count)]


def sampler(examples: Sequence[Examples], seed: int = 0, **changes: int) -> Sampler:
    return Sampler(examples, replace(OPTIONS, **changes), seed)


def origin(batch: Batch, row: int) -> tuple[int, int]:
    """Concept and number of a row's point."""
    return divmod(int(batch.x[row].flatten()[0]), 1000)


def test_every_point_is_drawn_once_before_any_is_drawn_again() -> None:
    turns = _Turns([numbered(3, "a", 0), numbered(5, "b", 1)], torch.Generator().manual_seed(0), ())
    drawn = [turns.next() for _ in range(30)]
    for name, count in (("a", 3), ("b", 5)):
        order = [k for own, k in drawn if own.teacher.name == name]
        assert sorted(order[:count]) == list(range(count))
        assert len(order) == 15
        assert all(Counter(order[i : i + count]) == Counter(range(count)) for i in range(0, 15 - count + 1, count))


def test_every_stretch_has_all_noise_levels_in_proportion() -> None:
    t = torch.arange(8).repeat(20) * 100

    def worst(order: Sequence[int]) -> float:
        """The largest difference of any level's number among the first points from its share."""
        drawn = t[torch.tensor(order)][:, None] == t[:8]
        return float((drawn.cumsum(0) - torch.arange(1, 161)[:, None] / 8).abs().max())

    generator = torch.Generator().manual_seed(0)
    orders = [spread_levels(t, generator) for _ in range(5)]
    assert all(sorted(order) == list(range(160)) for order in orders) and orders[0] != orders[1]
    assert max(map(worst, orders)) < 2
    assert min(worst(torch.randperm(160, generator=generator).tolist()) for _ in range(5)) > 2, (
        "control: a plain shuffle has not"
    )
    levels = torch.cat([t, torch.tensor([7])])  # and one that no other point has
    assert sorted(spread_levels(levels, generator)) == list(range(161))


def test_concepts_have_equal_turns_however_many_teachers_they_have() -> None:
    """Four subjects and one style with words, which teaches by itself and on each of them, and the prompts without triggers."""
    examples = [numbered(4, f"t{k}", k) for k in range(4)]
    examples += [numbered(4, f"clay on t{k}", 4, style="clay") for k in range(4)] + [
        numbered(4, "clay", 4, style="clay")
    ]
    examples.append(numbered(4, "plain", None))
    turns = _Turns(examples, torch.Generator().manual_seed(0), ())
    drawn = Counter((own.teacher.concept, own.teacher.name) for own, _ in (turns.next() for _ in range(300)))
    concepts = Counter()
    for (concept, _), count in drawn.items():
        concepts[concept] += count
    assert concepts == dict.fromkeys([0, 1, 2, 3, 4, None], 50)
    assert {count for (concept, _), count in drawn.items() if concept == 4} == {10}, "and its teachers in turn"


@pytest.mark.parametrize(
    "new, turns",
    [
        ((), {0: 1, 1: 1, 2: 1, 3: 1, None: 1}),
        ((3,), {0: 1, 1: 1, 2: 1, 3: 4, None: 1}),
        ((2, 3), {0: 2, 1: 2, 2: 3, 3: 3, None: 2}),
        ((1, 2, 3), {0: 1, 1: 1, 2: 1, 3: 1, None: 1}),
    ],
    ids=["none is new", "one", "two of five", "most are: they have more turns than every second"],
)
def test_what_is_new_has_every_second_turn(new: Sequence[int], turns: dict[int | None, int]) -> None:
    examples = [*(numbered(4, f"t{k}", k) for k in range(4)), numbered(4, "plain", None)]
    drawn = _Turns(examples, torch.Generator().manual_seed(0), new)
    found = Counter(drawn.next()[0].teacher.concept for _ in range(10 * sum(turns.values())))
    assert found == {concept: 10 * count for concept, count in turns.items()}


def test_every_second_scene_has_somebody_new() -> None:
    """Of eight, each of which stands beside one other: of four rows in a scene's turn one would have the last."""
    examples = subjects(8, points=12)

    def with_last(new: frozenset[int]) -> float:
        drawn = sampler(examples, new=new)
        batches = [batch for _ in range(30) for batch in drawn.draw() if batch.windows == 2]
        places = [{int(x[0, 0, 0]) // 1000, int(x[0, 0, -1]) // 1000} for batch in batches for x in batch.x]
        return sum(7 in place for place in places) / len(places)

    assert abs(with_last(frozenset()) - 0.25) < 0.05, "control: as often as the others"
    assert with_last(frozenset([7])) == 0.5


def test_a_batch_holds_prompts_and_negative_prompts_with_their_own_targets() -> None:
    examples = [*subjects(2), numbered(6, "plain", None)]
    assert not sampler(examples).singles(8).apart.any(), "where scenes say who stands where"
    batch = sampler(examples, scene_rows=0).singles(8)
    assert 0 < batch.prompts.count("ugly") < 8, "control: both kinds are there"
    for k, (prompt, x, target) in enumerate(zip(batch.prompts, batch.x, batch.target, strict=True)):
        negative, called = prompt == "ugly", prompt.startswith("t")
        assert torch.equal(target, -x if negative else x + 1)
        assert bool(batch.apart[k, 0]) == called, "only where a subject is called there is another to stay away from"
        concept, number = origin(batch, k)
        expected = torch.full_like(x, 1000 * (1 - concept) + number + 1) if called else target
        assert torch.equal(batch.other[k], expected)
        assert int(batch.t[k]) == number
        assert called == (prompt == f"t{concept}") or not called
    assert batch.windows == 1 and batch.scale.shape == batch.apart.shape == (8, 1)
    assert torch.equal(batch.scale, torch.full((8, 1), 2.0))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_scenes_are_two_wide_and_now_and_then_three(count: int) -> None:
    drawing = sampler([*subjects(count), numbered(6, "plain", None)])
    widths = []
    for _ in range(2 * TRIPLE_EVERY):
        singles, scenes = drawing.draw()
        widths.append(scenes.windows)
        assert (len(singles), len(scenes)) == (8, 4)
        assert scenes.x.shape == scenes.target.shape == scenes.other.shape == (4, 4, 2, 2 * scenes.windows)
        assert scenes.scale.shape == scenes.apart.shape == (4, scenes.windows)
    three = [2] * (TRIPLE_EVERY - 1) + [3 if count > 2 else 2]
    assert widths == three * 2


def test_from_a_step_on_half_of_the_scenes_are_those_that_the_merge_drew() -> None:
    """The latest of them; and a refinement that goes on from behind that step draws the same as one that came by."""
    examples, own = [*subjects(4), numbered(6, "plain", None)], subjects(4)
    drawn = {
        after: {n: make_scenes([replace(one, x=one.x + mark) for one in own], windows=n) for n in (2, 3)}
        for after, mark in ((5, 0.5), (9, 0.25))
    }
    came_by, goes_on, never = sampler(examples), sampler(examples), sampler(examples)
    for after, scenes in drawn.items():
        goes_on.add(scenes, after=after)
    numbers, widths = [], []
    for step in range(1, 5 + 2 * TRIPLE_EVERY):
        (singles, scenes), other = came_by.draw(), goes_on.draw()
        mark = 0.5 if step <= 9 else 0.25
        numbers.append(int((scenes.x % 1 == mark).all(dim=(1, 2, 3)).sum()))
        assert ((scenes.x % 1 == mark) | (scenes.x % 1 == 0)).all()
        widths.append(scenes.windows)
        assert torch.equal(scenes.x, other[1].x) and torch.equal(singles.x, other[0].x)
        plain = never.draw()
        assert step > 5 or (torch.equal(plain[0].x, singles.x) and torch.equal(plain[1].x, scenes.x))
        if step in drawn:
            came_by.add(drawn[step], after=step)
    assert numbers == [0] * 5 + [round(4 * OWN_SHARE)] * (len(numbers) - 5)
    assert 3 in widths[5:], "of either width"


def test_the_rows_of_scenes_are_their_windows_side_by_side() -> None:
    examples = [*subjects(4, importance=1.0), numbered(6, "plain", None)]
    examples[1] = replace(examples[1], teacher=replace(examples[1].teacher, importance=3.0))
    drawing = sampler(examples)
    seen = Counter()
    for _ in range(2 * TRIPLE_EVERY):
        _, scenes = drawing.draw()
        for k, prompt in enumerate(scenes.prompts):
            concepts = []
            for w in range(scenes.windows):
                part = (k, ..., slice(2 * w, 2 * w + 2))
                concept, number = divmod(int(scenes.x[part].flatten()[0]), 1000)
                concepts.append(concept)
                x = torch.full((4, 2, 2), float(1000 * concept + number))
                assert torch.equal(scenes.x[part], x) and int(scenes.t[k]) == number
                assert torch.equal(scenes.target[part], -x if prompt == "ugly" else x + 1)
                rival = concept ^ 1
                there = bool(scenes.apart[k, w])
                assert torch.equal(
                    scenes.other[part],
                    torch.full_like(x, float(1000 * rival + number + 1)) if there else scenes.target[part],
                )
                assert float(scenes.scale[k, w]) == pytest.approx(2.0 / SCENE_WEIGHT)
            for w, concept in enumerate(concepts):
                assert bool(scenes.apart[k, w]) == (prompt != "ugly" and (concept ^ 1) in concepts)
            if prompt != "ugly":
                assert prompt == Phrase("{}").asking(*(f"t{concept}" for concept in concepts))
            assert float(scenes.importance[k]) == pytest.approx(
                sum(3.0 if c == 1 else 1.0 for c in concepts) / len(concepts)
            )
            seen[len(set(concepts)), prompt == "ugly"] += 1
    assert set(seen) == {(2, False), (3, False), (2, True), (3, True)}


def test_every_scene_is_drawn_once_before_any_is_drawn_again() -> None:
    examples = subjects(2, points=4)
    drawing = sampler(examples, scene_rows=2, batch_size=1)
    total = len(make_scenes(examples, windows=2))
    drawn = []
    for _ in range(total):
        _, scenes = drawing.draw()
        drawn += [tuple(scenes.x[k].flatten(1)[0].tolist()) for k in range(2)]
    assert total == 8
    assert Counter(drawn[:total]) == Counter(drawn[total:]) == Counter(set(drawn))


def clay_on(subject: str) -> Examples:
    """A style on a subject, which comes of the teacher's own words too."""
    examples = numbered(6, f"clay on {subject}", 2, style="clay", effect=0.5)
    teacher = replace(examples.teacher, words=subject, active=(int(subject[1:]), 2), guest=True, importance=2.0)
    prompts = tuple("ugly" if slot.negative else teacher.prompt(slot) for slot in examples.slots)
    return replace(examples, teacher=teacher, prompts=prompts)


def test_a_style_with_trigger_words_is_compared_with_them_and_without() -> None:
    """At as many points as there are of single concepts, which have none of it."""
    examples = [*subjects(2), *map(clay_on, ("t0", "t1")), numbered(6, "plain", None)]
    drawing, drawn = sampler(examples, batch_size=2), Counter()
    for _ in range(8):
        singles, styled, scenes = drawing.draw()
        assert [singles.windows, styled.windows, scenes.windows in (2, 3)] == [1, 2, True]
        assert {origin(singles, k)[0] for k in range(len(singles))} <= {0, 1} and "clay" not in " ".join(
            singles.prompts
        )
        assert len(styled) == 2
        for k, (called, uncalled) in enumerate(styled.prompts):
            assert uncalled in ("t0", "t1") and called == f"{uncalled}, clay"
            x = styled.x[k]
            assert torch.equal(styled.target[k], x + 1) and torch.equal(styled.other[k], x + 3)
            # its own effect, and beside that the subject's
            assert (float(styled.style_scale[k]), float(styled.scale[k])) == pytest.approx((0.5, 2.5))
            assert float(styled.importance[k]) == 2.0
            concept, number = origin(styled, k)
            assert concept == 2 and int(styled.t[k]) == number
            drawn[uncalled, number] += 1
    assert drawn == {(name, number): 2 for name in ("t0", "t1") for number in (0, 1, 3, 4)}, (
        "where it is called, in turn"
    )

    shares = [styled.share(rank, 2) for rank in range(2)]
    assert [own.prompts for own in shares] == [styled.prompts[:1], styled.prompts[1:]], "a point is one process's"
    assert torch.equal(torch.cat([own.other for own in shares]), styled.other)


def test_a_style_that_is_nowhere_called_has_no_turn() -> None:
    """Of so few points that the negative prompt is asked at all of them; another one has its turns."""
    nowhere = replace(clay_on("t0"), has_other=torch.zeros(6, dtype=torch.bool))
    plain = numbered(6, "plain", None)
    styled = sampler([*subjects(2), nowhere, clay_on("t1"), plain]).draw()[1]
    assert {uncalled for _, uncalled in styled.prompts} == {"t1"}
    assert not any(isinstance(batch, StyleBatch) for batch in sampler([*subjects(2), nowhere, plain]).draw())


@pytest.mark.parametrize(
    ("concepts", "styles", "rows"), [(2, 1, 12), (3, 1, 12), (4, 1, 9), (4, 2, 18), (13, 1, 3), (99, 1, 1), (3, 0, 0)]
)
def test_a_style_has_three_turns_for_one_of_a_concept(concepts: int, styles: int, rows: int) -> None:
    """However many there are; and on however many subjects it teaches."""
    teachers = [Teacher(f"t{k}", k, (k,), by_words=k < styles) for k in range(concepts)]
    teachers += [Teacher(f"t0 on t{k}", 0, (0, k), by_words=styles > 0, guest=True) for k in range(1, concepts)]
    assert style_rows([*teachers, Teacher("plain", None, ())], 12) == rows


def test_without_scene_rows_or_subjects_there_are_no_scenes() -> None:
    assert [len(sampler(subjects(2), scene_rows=0).draw()), len(sampler([numbered(3, "a")]).draw())] == [1, 1]
    assert len(sampler(subjects(2)).draw()) == 2


def test_a_batch_in_parts_is_the_batch() -> None:
    _, scenes = sampler(subjects(2)).draw()
    parts = list(scenes.parts(3))
    assert [len(part) for part in parts] == [3, 1]
    assert tuple(itertools.chain.from_iterable(part.prompts for part in parts)) == scenes.prompts
    for name in ("x", "t", "target", "scale", "other", "apart", "importance"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(scenes, name))
    assert {part.windows for part in parts} == {2}


def test_each_concepts_errors_are_measured_in_its_own_effect() -> None:
    strong, weak, nothing = (
        numbered(4, name, k, effect=e) for k, (name, e) in enumerate((("s", 4.0), ("w", 0.4), ("n", 0.0)))
    )
    weak.effect[1:] = torch.nan  # measured at one point only
    found = scales([strong, weak, nothing, numbered(4, "plain", None)])
    assert found == pytest.approx({"s": 4.0, "w": 0.4, "n": 2.2, "plain": 2.2})
    unknown = replace(weak, effect=torch.full((4,), torch.nan))
    assert scales([strong, unknown]) == pytest.approx({"s": 4.0, "w": 4.0}), "in the mean of the others"
    faint = replace(weak, effect=torch.full((4,), 1e-6))
    assert scales([strong, faint])["w"] == pytest.approx(0.01 * (4.0 + 1e-6) / 2)


def test_a_seed_decides_what_is_drawn() -> None:
    first, again, other = (sampler(subjects(3), seed=seed).draw() for seed in (0, 0, 1))
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.x, b.x) for a, b in zip(first, other, strict=True))
