"""What examples hold, the paths that they were met on, and the slots that teachers share."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lib_loraclr.model.host import Conditioning, Host
from lib_loraclr.model.low_rank import whole
from lib_loraclr.progress import Progress
from lib_loraclr.recording.examples import Examples, record_examples, spread
from lib_loraclr.recording.path_plan import FOLLOWED, PathPlan, draw_slots
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.sampling import denoising_path, initial_noise, noise_and_clean
from lib_loraclr.recording.teachers import Slot, make_teachers
from lib_loraclr.request.phrases import Part, Phrases
from tests.small import PROMPTS, concept, examples_of, predictor_of, slots_of

#: half precision of what is kept
CLOSE = {"atol": 5e-3, "rtol": 5e-3}
LITTLE = PathPlan(Part.LEARN, seed=4, paths=2, steps=3, renoised=2, negative_every=4, partners=True)


class Counted(Progress):
    """Evaluations by what they were told with."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()

    def advance(self, units: int = 1, note: str = "") -> None:
        self.told[note] += units


def draw(plan: PathPlan, subjects: Sequence[int]) -> list[Slot]:
    return draw_slots(plan, Phrases("photo", plan.part, templates=PROMPTS.templates, seed=plan.seed), subjects)


def path_of(predictor: Predictor, noise: torch.Tensor, conditioning: Conditioning) -> list:
    """The second LoRA's own path, as a picture is drawn with its tag."""
    negative = predictor.encode((1,), [""] * len(noise))
    with predictor.host.apply(predictor.together((1,))):
        return [*denoising_path(predictor.host, noise, conditioning, negative, steps=3, guidance=4.0)]


def silent(predictor: Predictor) -> Predictor:
    """With a model that predicts nothing, in no time: for what does not depend on its predictions."""
    host = copy.copy(predictor.host)
    host.denoise = lambda x, t, conditioning: torch.zeros_like(x)
    predictor.host = host
    return predictor


# -- what is recorded


def test_examples_hold_what_the_models_predict_at_their_points(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    examples, pizza, rest = examples_of(predictor, teachers, LITTLE)
    assert len(examples) == 8
    assert examples.t.tolist()[:6] == [999, 999, 666, 666, 332, 332]

    def predict(active: tuple[int, ...], prompt: str, k: int) -> torch.Tensor:
        with torch.no_grad(), host.apply(predictor.together(active)):
            return host.denoise(examples.x[k : k + 1].float(), examples.t[k : k + 1], host.encode([prompt]))[0]

    assert sum(slot.negative for slot in examples.slots) == 2
    assert any(slot.path is not None and k > 1 and not slot.negative for k, slot in enumerate(examples.slots))
    for k, slot in enumerate(examples.slots):
        if slot.negative:
            assert examples.prompts[k] == ""
            assert not examples.has_other[k] and examples.effect[k].isnan()
            torch.testing.assert_close(examples.target[k].float(), predict((), "", k), **CLOSE)
            continue
        assert examples.prompts[k] == teachers[0].prompt(slot)
        teacher, base = (predict(active, examples.prompts[k], k) for active in ((0,), ()))
        torch.testing.assert_close(examples.target[k].float(), teacher, **CLOSE)
        torch.testing.assert_close(examples.effect[k], (teacher - base).square().mean(), atol=1e-5, rtol=0.05)
        # the partner is asked in words of its own
        other = predict((1,), teachers[1].prompt(slot), k)
        assert slot.partner == {0: 1, 1: 0} and examples.has_other[k]
        torch.testing.assert_close(examples.other[k].float(), other, **CLOSE)
        assert not torch.allclose(other, teacher, **CLOSE), "control: it is another's"
    assert rest.other is None and not rest.has_other.any() and rest.effect.isnan().all()


def test_of_a_style_with_trigger_words_is_known_what_is_predicted_without_it_and_them(host: Host, demo: Path) -> None:
    names = ("fox-face", "style-clay")
    predictor = predictor_of(host, demo, *names)
    teachers = make_teachers([concept(demo, name) for name in names], PROMPTS)
    _, clay, on_fox, _ = examples_of(predictor, teachers, LITTLE)

    def predict(active: tuple[int, ...], prompt: str, own: Examples, k: int) -> torch.Tensor:
        with torch.no_grad(), host.apply(predictor.together(active)):
            return host.denoise(own.x[k : k + 1].float(), own.t[k : k + 1], host.encode([prompt]))[0]

    for own, without in ((clay, ()), (on_fox, (0,))):
        assert own.has_other.tolist() == [not slot.negative for slot in own.slots]
        for k in own.has_other.nonzero()[:, 0].tolist():
            words = own.prompts[k].removesuffix(", clay style")
            assert words != own.prompts[k]
            other = predict(without, words, own, k)
            torch.testing.assert_close(own.other[k].float(), other, **CLOSE)
            with_words = predict(without, own.prompts[k], own, k)
            assert not torch.allclose(own.other[k].float(), with_words, **CLOSE), "control: the words matter"
            # what the style and its words change
            changed = predict((*without, 1), own.prompts[k], own, k) - other
            torch.testing.assert_close(own.effect[k], changed.square().mean(), atol=1e-5, rtol=0.05)


def test_a_style_whose_few_points_ask_for_the_negative_prompt_alone_is_known_nowhere(host: Host, demo: Path) -> None:
    names = ("fox-face", "pizza", "style-clay")
    predictor = predictor_of(host, demo, *names)
    teachers = make_teachers([concept(demo, name) for name in names], PROMPTS)
    plan = PathPlan(Part.LEARN, seed=0, paths=1, steps=2, negative_every=1, effects=2, partners=True)
    for own in examples_of(predictor, teachers, plan):
        assert all(slot.negative for slot in own.slots), "control"
        assert own.effect.isnan().all() and not own.has_other.any()


def test_a_style_without_trigger_words_is_half_there_where_the_negative_prompt_is_asked(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face", "style-mono", background=(1,))
    concepts = [concept(demo, "fox-face"), concept(demo, "style-mono")]
    fox = examples_of(predictor, make_teachers(concepts, PROMPTS), LITTLE)[0]

    def predict(times: float, k: int) -> torch.Tensor:
        """By a changed weight in place of factors."""
        deltas = {key: whole(times * factors.dense()) for key, factors in predictor.deltas[1].items()}
        with torch.no_grad(), host.apply(deltas):
            return host.denoise(fox.x[k : k + 1].float(), fox.t[k : k + 1], host.encode([""]))[0]

    negative = [k for k, slot in enumerate(fox.slots) if slot.negative]
    assert len(negative) == 2
    for k in negative:
        torch.testing.assert_close(fox.target[k].float(), predict(0.5, k), **CLOSE)
        for times in (0.0, 1.0):
            assert not torch.allclose(fox.target[k].float(), predict(times, k), **CLOSE), "control: it matters"


def test_points_lie_on_the_path_that_the_teacher_takes_away_from_the_base_model(host: Host, demo: Path) -> None:
    """In the words of its first slot."""
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    (pizza,) = examples_of(predictor, teachers, LITTLE)[1:2]
    # the second teacher's noise begins where the first's can never come
    noise = initial_noise(host, [1004, 1005], *predictor.size)
    conditioning = predictor.encode((1,), [teachers[1].prompt(slot) for slot in pizza.slots[:2]])
    base, (*leaking, _) = predictor.encode((), ["", ""]), path_of(predictor, noise, conditioning)
    x, steps, schedule = noise, [], [999, 666, 332]
    for now, following in zip(schedule, [*schedule[1:], None], strict=True):
        steps.append(x)
        t = torch.tensor([now, now])
        with torch.no_grad():
            with host.apply(predictor.together((1,))):
                called = host.denoise(x, t, conditioning)
            subtracted = host.denoise(x, t, base)
        noise_part, clean = noise_and_clean(host, x, t, subtracted + 4.0 * (called - subtracted))
        alpha = host.alphas_cumprod[following] if following else torch.tensor(1.0)
        x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise_part
    for step, met, other in zip(steps, pizza.x[:6].split(2), leaking, strict=True):
        torch.testing.assert_close(met.float(), step, **CLOSE)
        assert step is steps[0] or not torch.allclose(other.x, step, **CLOSE), "control: the LoRA changes both"
    for k, x in enumerate(pizza.x[6:].float()):
        signal = host.alphas_cumprod[pizza.t[6 + k]]
        assert 0.02 < signal < 0.98, "control: there is something of both at this seed"
        noise = (x - signal.sqrt() * clean[k]) / (1 - signal).sqrt()
        alike = [float(torch.corrcoef(torch.stack([noise.flatten(), c.flatten()]))[0, 1]) for c in clean]
        assert float(noise.std()) == pytest.approx(1, abs=0.15)
        assert abs(float(noise.mean())) < 0.15 and max(map(abs, alike)) < 0.2
        wrong = (x - signal.sqrt() * clean[1 - k]) / (1 - signal).sqrt()
        assert float((wrong - noise).norm()) > 0.05 * float(noise.norm()), "control: the other picture leaves a trace"


def test_noise_levels_are_the_same_for_all_teachers_and_noise_is_not(host: Host, demo: Path) -> None:
    names = ("fox-face", "pizza", "style-clay")
    predictor = silent(predictor_of(host, demo, *names))
    teachers = make_teachers([concept(demo, name) for name in names], PROMPTS)
    plan = PathPlan(Part.LEARN, seed=1, paths=2, steps=2, renoised=4)
    examples = examples_of(predictor, teachers, plan)
    whole = {slot.number: int(t) for slot, t in zip(examples[0].slots, examples[0].t, strict=True)}
    assert len(whole) == plan.points == 8
    assert len({whole[number] for number in range(4, 8)}) > 2, "renoised ones are at levels of their own"
    for own in examples:
        share = next(teacher.share for teacher in teachers if teacher is own.teacher)
        assert len(own) == (8 if share == 1 else 1 * 2 + 2)
        assert [whole[slot.number] for slot in own.slots] == own.t.tolist()
    for one, other in itertools.combinations(examples, 2):
        assert not any(torch.equal(a, b) for a in one.x for b in other.x)
    again = examples_of(predictor, teachers[:1], plan)[0]
    assert torch.equal(again.x, examples[0].x), "control: what one teacher meets is always the same"


def test_effects_are_measured_at_as_many_points_as_were_asked_for(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face")
    teachers = make_teachers([concept(demo, "fox-face")], PROMPTS)
    few, every = (
        examples_of(predictor, teachers, PathPlan(Part.LEARN, 0, paths=2, steps=3, effects=effects))[0]
        for effects in (3, None)
    )
    at = spread(6, 3)
    assert at.tolist() == [0, 2, 5]
    assert few.effect.isnan().tolist() == [k not in at for k in range(6)]
    torch.testing.assert_close(few.effect[at], every.effect[at], rtol=0.01, atol=1e-6)
    assert few.effect.nanmean() > 0


def test_selected_points_are_those_points(host: Host, demo: Path) -> None:
    predictor = silent(predictor_of(host, demo, "fox-face", "pizza"))
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    fox, _, rest = examples_of(predictor, teachers, LITTLE)
    for own in (fox, rest):
        few = own.select(torch.tensor([5, 0, 6]))
        for place, k in enumerate((5, 0, 6)):
            assert (few.slots[place], few.prompts[place]) == (own.slots[k], own.prompts[k])
            for name in ("x", "t", "target", "has_other"):
                assert torch.equal(getattr(few, name)[place], getattr(own, name)[k]), name
            assert own.other is None or torch.equal(few.other[place], own.other[k])


MERGES = {
    "one": ("fox-face",),
    "two": ("fox-face", "pizza"),
    "three, one of which has no partner": ("fox-face", "pizza", "penguin"),
    "a style with words": ("fox-face", "pizza", "style-clay"),
    "a style without": ("fox-face", "pizza", "style-mono"),
    "one and a style": ("fox-face", "style-clay"),
}


@pytest.mark.parametrize("names", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize(
    "plan",
    [
        PathPlan(Part.LEARN, 0, paths=2, steps=4, renoised=3, negative_every=3, effects=2, partners=True),
        PathPlan(Part.STOP, 0, paths=1, steps=2),
    ],
    ids=["learnt", "stopped by"],
)
def test_it_takes_as_many_evaluations_as_it_says(
    host: Host, demo: Path, names: tuple[str, ...], plan: PathPlan
) -> None:
    concepts = [concept(demo, name) for name in names]
    background = tuple(k for k, name in enumerate(names) if name == "style-mono")
    predictor = silent(predictor_of(host, demo, *names, background=background))
    predictor.progress = Counted()
    teachers = make_teachers(concepts, PROMPTS)
    slots, subjects = slots_of(plan, teachers), [t.concept for t in teachers if t.in_scenes]
    for number, teacher in enumerate(teachers):
        before = predictor.progress.told.total()
        record_examples(predictor, teachers, number, plan, slots)
        assert predictor.progress.told.total() - before == plan.evaluations(teacher, subjects), teacher.name
    assert set(predictor.progress.told) == {teacher.name for teacher in teachers}


# -- slots


@pytest.mark.parametrize("count", range(2, 10))
def test_partners_meet_as_in_a_tournament(count: int) -> None:
    subjects = [3 * k + 1 for k in range(count)]
    rounds = count - 1 if count % 2 == 0 else count
    slots = draw(PathPlan(Part.LEARN, 0, paths=rounds, steps=2), subjects)
    first, second = ([slot.partner for slot in slots[start : start + rounds]] for start in (0, rounds))
    assert second == [*first[1:], first[0]], "round after round, along a path too"
    met = Counter()
    for partner in first:
        assert all(partner[other] == one != other for one, other in partner.items()), "mutual"
        assert len(partner) == count - count % 2, "of an odd number one waits"
        met.update(tuple(sorted(pair)) for pair in partner.items())
    assert met == dict.fromkeys(itertools.combinations(subjects, 2), 2), "every pair once, seen from both"
    if count % 2:
        waiting = [set(subjects) - set(partner) for partner in first]
        assert Counter(one for (one,) in waiting) == dict.fromkeys(subjects, 1), "each waits once"


@pytest.mark.parametrize("paths", [1, 3, 6, 32])
@pytest.mark.parametrize("count", [3, 4, 9])
def test_along_every_path_all_meet_all_whatever_the_number_of_paths(count: int, paths: int) -> None:
    rounds = count - 1 if count % 2 == 0 else count
    slots = draw(PathPlan(Part.LEARN, 0, paths=paths, steps=rounds), range(count))
    for path in range(paths):
        met = [slot.partner for slot in slots[path::paths]]
        assert all(partner not in met[:k] for k, partner in enumerate(met)), "none twice while another has not met"


@pytest.mark.parametrize("subjects", [[], [4]])
def test_none_and_one_have_no_partner(subjects: list[int]) -> None:
    assert {tuple(slot.partner) for slot in draw(LITTLE, subjects)} == {()}


def test_slots_are_numbered_and_their_words_are_those_of_their_part() -> None:
    plan = PathPlan(Part.MEASURE, 7, paths=5, steps=4, renoised=6)
    slots = draw(plan, [0, 1])
    assert [slot.number for slot in slots] == list(range(plan.points)) == list(range(26))
    assert {slot.part for slot in slots} == {Part.MEASURE}
    assert draw(plan, [0, 1]) == slots
    assert draw(PathPlan(Part.MEASURE, 8, 5, 4, 6), [0, 1]) != slots


def test_half_of_the_points_on_a_path_are_asked_in_the_words_that_it_was_followed_with() -> None:
    plan = PathPlan(Part.LEARN, 0, paths=40, steps=10, renoised=80)
    slots = draw(plan, [])
    later = slots[40:400]
    assert sum(slot.path is not None for slot in later) == FOLLOWED * len(later)
    for path in range(40):
        assert slots[path].path == path
        on_path = later[path::40]
        assert 0 < sum(slot.path == path for slot in on_path) < len(on_path), "on every path some and not all"
        # two phrases of the bank may be equal by chance; the same one is not
        assert all((slot.phrase is slots[path].phrase) == (slot.path == path) for slot in on_path)
    assert {slot.path for slot in slots[400:]} == {None}, "finished pictures are asked about in words of their own"


@pytest.mark.parametrize("drawn", [(40, 10, 80), (2, 2, 0), (3, 3, 5), (1, 2, 0)])
@pytest.mark.parametrize("every", [0, 3, 4])
def test_the_negative_prompt_has_its_share_of_the_slots_and_no_whole_path(drawn: tuple, every: int) -> None:
    plan = PathPlan(Part.LEARN, 0, *drawn, negative_every=every)
    slots = draw(plan, [])
    negative = {slot.number for slot in slots if slot.negative}
    assert len(negative) == (plan.points // every if every else 0)
    for path in range(plan.paths):
        assert any(not slot.negative for slot in slots[path : plan.paths * plan.steps : plan.paths])
    words = [slot.phrase for slot in draw(PathPlan(Part.LEARN, 0, *drawn), [])]
    assert [slot.phrase for slot in slots] == words, "it is asked at the same points, of the same paths"


def test_what_a_path_says_already_is_not_asked_again(host: Host, demo: Path) -> None:
    """Control: a teacher with texts of its own asks them in turn, and knows only what each path began with."""
    predictor = silent(predictor_of(host, demo, "fox-face", "pizza"))
    predictor.progress = Counted()
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    plan = PathPlan(Part.LEARN, 0, paths=4, steps=5, effects=1)
    slots, asked = slots_of(plan, teachers), []
    predict = predictor.predict

    def counted(
        active: Sequence[int], x: torch.Tensor, t: torch.Tensor, prompts: Sequence[str], *more: str, **options: float
    ):
        asked.append(len(prompts))
        return predict(active, x, t, prompts, *more, **options)

    predictor.predict = counted
    for number in (0, 2):
        record_examples(predictor, teachers, number, plan, slots)
    assert asked == [8, 1, 16], "half of the sixteen later ones; an effect; all later ones"


# -- plans


@pytest.mark.parametrize("points", [2, 3, 5, 16, 17, 31, 64, 127, 128, 129, 200, 255, 256, 1000])
@pytest.mark.parametrize("drawn", [(16, 8, 128), (4, 8, 0), (1, 50, 3), (40, 2, 10), (3, 5, 7)])
def test_a_plan_within_so_many_points_has_no_more_and_as_many_as_it_can(drawn: tuple, points: int) -> None:
    paths, steps, renoised = drawn
    plan = PathPlan(Part.LEARN, 0, *drawn, effects=5, partners=True)
    few = plan.within(points)
    assert few.points <= max(2, points) and (few.paths, few.steps) >= (1, 2)
    assert few.paths <= paths and few.steps <= steps and few.renoised <= renoised
    assert (few.part, few.seed, few.effects, few.partners) == (Part.LEARN, 0, 5, True)
    if points >= plan.points:
        assert few == plan
    if points >= paths * steps:
        assert (few.paths, few.steps) == (paths, steps), "pictures with fresh noise go first"
        assert few.points == min(points, plan.points)
    elif points >= steps:
        assert (few.steps, few.renoised) == (steps, 0), "then paths"
        assert few.paths == points // steps
    else:
        assert few.paths == 1 and few.steps == points


def test_a_share_of_a_plan_keeps_one_path_at_least(demo: Path) -> None:
    names = ("fox-face", "pizza", "penguin", "guitar", "style-clay")
    teachers = make_teachers([concept(demo, name) for name in names], PROMPTS)
    plan = PathPlan(Part.LEARN, 0, paths=16, steps=8, renoised=128)
    assert [plan.of(teacher).points for teacher in teachers] == [256] * 5 + [4 * 8 + 32] * 4 + [256]
    little = PathPlan(Part.LEARN, 0, paths=2, steps=2)
    assert {little.of(teacher).paths for teacher in teachers if teacher.share < 1} == {1}
    assert {little.of(teacher).renoised for teacher in teachers} == {0}


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (5, 9), (100, 7), (64, 2), (3, 1)])
def test_spread_points_are_distinct_and_reach_from_end_to_end(count: int, most: int) -> None:
    at = spread(count, most).tolist()
    assert at == sorted(set(at)) and len(at) == min(count, most)
    assert at[0] == 0 and (at[-1] == count - 1 or len(at) == 1)
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert not gaps or max(gaps) - min(gaps) <= 1
