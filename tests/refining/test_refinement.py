"""The refinement at the model's output."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.model.host import Conditioning, Host
from lib_loraclr.model.low_rank import Factors, concatenate
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining import refinement
from lib_loraclr.refining.batches import Batch, Sampler
from lib_loraclr.refining.fitting import Fit, find_fit
from lib_loraclr.refining.refinement import Refined, refine
from lib_loraclr.refining.retention import Retention
from lib_loraclr.refining.scales import NoiseLevels
from lib_loraclr.refining.trained import TrainedFactors
from lib_loraclr.request.phrases import Part
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests.small import PROMPTS, concept, examples_of, predictor_of

OPTIONS = RefinementOptions(Terms(), steps=4, batch_size=4, scene_rows=0, learning_rate=2e-3)


@pytest.fixture(scope="module")
def lesson(host: Host, demo: Path) -> tuple[Predictor, list[Examples]]:
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    plan = PathPlan(Part.LEARN, seed=0, paths=1, steps=3, partners=True)
    return predictor, examples_of(predictor, teachers, plan)


def loss_of(predictor: Predictor, deltas: Mapping[str, Factors], batches: Sequence[Batch], terms: Terms) -> float:
    """The slow second way: row by row, and by the formula of a step's loss."""
    total = 0.0
    with torch.no_grad(), predictor.host.apply(deltas):
        for batch in batches:
            for k in range(len(batch)):
                asked = predictor.host.encode([batch.prompts[k]])
                prediction = predictor.host.denoise(batch.x[k : k + 1], batch.t[k : k + 1], asked)[0]
                width, positive, negative = prediction.shape[-1] // batch.windows, 0.0, 0.0
                for w in range(batch.windows):
                    part = (..., slice(w * width, (w + 1) * width))
                    error = (prediction - batch.target[k])[part]
                    positive += float(error.square().mean() / batch.scale[k, w]) / batch.windows
                    if batch.apart[k, w]:
                        d = (batch.target[k] - batch.other[k])[part]
                        negative += float((error * d).sum() / d.square().sum()) ** 2
                loss = terms.positive * positive + terms.contrast * negative
                total += float(batch.importance[k]) * loss / len(batch) / len(batches)
    return total


def test_a_steps_loss_is_that_of_its_rows_and_in_parts_has_the_same_gradient(
    lesson: tuple[Predictor, list[Examples]],
) -> None:
    """Single concepts and scenes, whole and some at a time."""
    predictor, examples = lesson
    batches = Sampler(examples, replace(OPTIONS, batch_size=5, scene_rows=2), seed=1).draw()
    assert [batch.windows for batch in batches] == [1, 2]
    assert [bool(batch.apart.any()) for batch in batches] == [False, True], "the contrast is the scenes'"
    gradients = []
    start = {key: concatenate(deltas) for key, deltas in predictor.together([0, 1]).items()}
    terms = Terms(positive=0.7, contrast=2.0)
    options = replace(OPTIONS, terms=terms)
    for fit in (Fit(8, recompute=False), Fit(2, recompute=False)):
        trained = TrainedFactors(start, predictor.host)
        steps = refinement._Steps(predictor, trained, Sampler(examples, OPTIONS, seed=1), options, fit, None)
        with predictor.host.apply(trained.applied):
            loss, contrast = steps._backward(batches).tolist()
        gradients.append((loss, contrast, trained.gradients))
    (whole, contrast, expected), (parts, contrast_of_parts, found) = gradients
    assert whole == pytest.approx(loss_of(predictor, start, batches, terms), rel=1e-3)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert contrast_of_parts == pytest.approx(contrast, rel=1e-4) and contrast > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_step_compares_a_style_with_its_words_and_without(host: Host, demo: Path) -> None:
    names = ("fox-face", "style-clay")
    predictor = predictor_of(host, demo, *names)
    teachers = make_teachers([concept(demo, name) for name in names], PROMPTS)
    examples = examples_of(predictor, teachers, PathPlan(Part.LEARN, seed=0, paths=1, steps=3, partners=True))
    options = replace(OPTIONS, terms=Terms(positive=0.7, contrast=2.0, style=3.0), batch_size=4)
    singles, drawn = Sampler(examples, options, seed=1).draw()
    assert len(drawn) == 4, "of two concepts, counted as three"
    styled = next(drawn.parts(2))
    start = {key: concatenate(deltas) for key, deltas in predictor.together([0, 1]).items()}
    found = []
    for fit in (Fit(4, recompute=False), Fit(1, recompute=False)):
        trained = TrainedFactors(start, host)
        steps = refinement._Steps(predictor, trained, Sampler(examples, options, seed=1), options, fit, None)
        with host.apply(trained.applied):
            found.append((*steps._backward([singles, styled]).tolist(), trained.gradients))
    (loss, contrast, gradients), (in_parts, _, gradients_in_parts) = found
    expected = 0.0
    with torch.no_grad(), host.apply(start):
        for k, prompts in enumerate(styled.prompts):
            called, uncalled = (
                host.denoise(styled.x[k : k + 1], styled.t[k : k + 1], host.encode([prompt]))[0] for prompt in prompts
            )
            target, other = styled.target[k], styled.other[k]
            changed = float((called - uncalled - target + other).square().mean() / styled.style_scale[k])
            errors = float((called - target).square().mean() + (uncalled - other).square().mean()) / 2
            expected += (0.7 * errors / float(styled.scale[k]) + 3.0 * changed) / 2
    # two points of the style count half as much as four single ones
    single = loss_of(predictor, start, [singles], options.terms)
    assert loss == pytest.approx((single + expected / 2) / 1.5, rel=1e-3)
    assert in_parts == pytest.approx(loss, rel=1e-4) and contrast == 0, "nothing here is another's"
    torch.testing.assert_close(gradients_in_parts, gradients, rtol=1e-3, atol=1e-4 * float(gradients.abs().max()))


def fit_of(predictor: Predictor, trained: TrainedFactors, examples: Sequence[Examples]) -> Fit:
    sampler = Sampler(examples, OPTIONS, seed=1)
    return find_fit(
        predictor, trained, lambda samples: refinement._loss(predictor, sampler.singles(samples), Terms()), 8
    )


def test_small_memory_makes_small_batches_and_then_recomputes(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    trained = TrainedFactors(predictor.deltas[0], predictor.host)
    plans = []
    for megabytes in (4096, 40, 1):
        monkeypatch.setattr(predictor, "memory", megabytes << 20)
        plans.append(fit_of(predictor, trained, examples))
    assert plans[0] == Fit(8, recompute=False)
    assert plans[1].samples < 8
    assert plans[2] == Fit(1, recompute=True)


def test_a_card_that_runs_out_of_memory_makes_it_recompute_or_says_so(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    trained = TrainedFactors(predictor.deltas[0], predictor.host)
    predictor, small = copy.copy(predictor), copy.copy(predictor.host)
    predictor.host, predictor.memory, recomputing = small, 4096 << 20, []

    def denoise(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if len(x) > 1 or not recomputing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return type(small).denoise(small, x, t, conditioning)

    monkeypatch.setattr(small, "denoise", denoise, raising=False)
    with pytest.raises(LoraclrError, match="graphics memory is too small to refine this merge.*effort layers"):
        fit_of(predictor, trained, examples)

    @contextmanager
    def recompute() -> Iterator[None]:
        recomputing.append(True)
        yield

    monkeypatch.setattr(small, "recomputing", recompute, raising=False)
    assert fit_of(predictor, trained, examples) == Fit(1, recompute=True)


def test_less_memory_means_half_as_many_then_recomputing_and_then_the_remedy() -> None:
    fits = [Fit(7, recompute=False)]
    with pytest.raises(LoraclrError, match="graphics memory is too small to refine this merge.*effort layers"):
        while True:
            fits.append(fits[-1].smaller())
    assert [(fit.samples, fit.recompute) for fit in fits] == [(7, False), (4, False), (2, False), (1, False), (1, True)]


def test_wide_pictures_take_the_place_of_as_many_native_ones() -> None:
    assert [Fit(6, recompute=False).rows(windows) for windows in (1, 2, 3)] == [6, 3, 2]
    assert [Fit(1, recompute=True).rows(windows) for windows in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("out"), RuntimeError("Not enough memory, use lower resolution")]
)
def test_memory_that_runs_out_while_refining_costs_nothing_but_time(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    predictor, examples = lesson
    options = replace(OPTIONS, batch_size=4, steps=3)
    # a start that can be improved upon at once, or all would return it
    start = {key: Factors(0.2 * f.up, f.down) for key, f in predictor.deltas[0].items()}
    expected = refine(predictor, start, examples, examples, options, seed=0)
    predictor, small = copy.copy(predictor), copy.copy(predictor.host)
    predictor.host, sizes = small, []

    def denoise(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(x))
            if len(sizes) > 3 and len(x) > 1:  # the look at what fits is over
                raise error
        return type(small).denoise(small, x, t, conditioning)

    monkeypatch.setattr(small, "denoise", denoise, raising=False)
    found = refine(predictor, start, examples, examples, options, seed=0)
    assert {4, 2} <= set(sizes) and sizes[-8:] == [1] * 8, "half as many, again half, and no more from then on"
    [told] = found.trouble
    assert "from then on samples were run 1 at a time, which takes longer" in told and expected.trouble == ()
    other = refine(predictor, start, examples, examples, options, seed=1)
    # Muon makes all directions of a gradient equally long, so that rounding shows in those that hardly are there
    assert apart(found, expected) < 0.05 * apart(other, expected), "against a run that drew other examples"


@pytest.mark.parametrize(("fitting", "steps"), [(0, 0), (5, 3)], ids=["from the first sample on", "after some steps"])
def test_memory_for_not_even_one_sample_ends_it_with_the_best_there_was(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch, fitting: int, steps: int
) -> None:
    """The look at what fits runs one sample and then two; each step runs one batch."""
    predictor, examples = lesson
    start = {key: Factors(0.2 * f.up, f.down) for key, f in predictor.deltas[0].items()}
    predictor, small = copy.copy(predictor), copy.copy(predictor.host)
    predictor.host, run = small, []

    def denoise(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if torch.is_grad_enabled():
            run.append(len(x))
            if len(run) > fitting:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return type(small).denoise(small, x, t, conditioning)

    monkeypatch.setattr(small, "denoise", denoise, raising=False)
    # a look after each step
    options = replace(OPTIONS, steps=6)
    found = refine(predictor, start, examples, examples, options, seed=0)
    assert (found.reason, found.steps, len(found.history)) == ("memory", steps, steps)
    moved = max(float((found.factors[key].dense() - f.dense()).abs().max()) for key, f in start.items())
    assert (moved > 1e-4) == bool(steps), "what the steps that fitted have brought is kept"
    assert (found.fit is None) == (not steps)


@pytest.mark.parametrize(
    ("place", "moment", "steps"),
    [("TrainedFactors", 1, 0), ("measure", 1, 0), ("measure", 3, 2), ("Muon.step", 1, 0), ("Muon.step", 3, 2)],
    ids=str,
)
def test_memory_that_runs_out_beside_the_samples_ends_it_with_the_best_there_was(
    lesson: tuple[Predictor, list[Examples]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    moment: int,
    steps: int,
) -> None:
    """What is too much may be the factors themselves, their momentum, or a look at what they came to."""
    predictor, examples = lesson
    start = {key: Factors(0.2 * f.up, f.down) for key, f in predictor.deltas[0].items()}
    owner, _, name = place.rpartition(".")
    owner = getattr(refinement, owner) if owner else refinement
    function, asked = getattr(owner, name), []

    def small_card(*given: Any, **named: Any) -> Any:
        asked.append(name)
        if len(asked) == moment:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return function(*given, **named)

    monkeypatch.setattr(owner, name, small_card)
    # a look after each step
    found = refine(predictor, start, examples, examples, replace(OPTIONS, steps=6), seed=0)
    assert found.reason == "memory" and len(found.history) == (steps if place == "Muon.step" else max(0, moment - 2))
    [told] = found.trouble
    assert "too small to refine this merge" in told and f"it ended after {found.steps} of 6 steps" in told
    moved = max(float((found.factors[key].dense() - f.dense()).abs().max()) for key, f in start.items())
    assert (moved > 1e-4) == bool(found.history), "what was found to be better is kept"
    assert all(f.up.device.type == "cpu" and f.up.dtype == torch.float32 for f in found.factors.values())


def apart(one: Refined, other: Refined) -> float:
    """How far two results lie apart."""
    return float(sum((one.factors[key].dense() - f.dense()).square().sum() for key, f in other.factors.items()).sqrt())


def test_an_error_of_another_kind_is_not_tried_again(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    predictor, small = copy.copy(predictor), copy.copy(predictor.host)
    predictor.host, asked = small, []

    def denoise(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        asked.append(len(x))
        if torch.is_grad_enabled() and len(asked) > 3:  # the look at what fits is over
            raise RuntimeError("an illegal memory access")
        return type(small).denoise(small, x, t, conditioning)

    monkeypatch.setattr(small, "denoise", denoise, raising=False)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        refine(predictor, predictor.deltas[0], examples, examples, replace(OPTIONS, steps=3), seed=0)


@pytest.mark.parametrize(
    ("looks", "stops"),
    [
        ([0.5, 0.2, 0.1, 0.1], True),
        ([0.5, 0.2, 0.1, 0.3], False),
        ([0.5, 0.2, 0.3, 0.35], False),
        ([0.5, 0.2, 0.1, 0.15], True),
        ([0.5, 0.6, 0.5, 0.4], True),
        ([0.5, 0.6, 0.5, 0.7], False),
    ],
    ids=["still", "rises, and would come above", "did so before", "rises too slowly", "falls", "is the best"],
)
def test_a_run_goes_on_as_long_as_its_rise_would_bring_more_than_the_best(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch, looks: list[float], stops: bool
) -> None:
    """Six looks in sixty steps; the third and fourth from half-way on, after which two are left."""
    predictor, examples = lesson
    found = iter([Retention((value,), None) for value in [0.5, *looks]])
    monkeypatch.setattr(refinement, "measure", lambda *_, **__: next(found))
    trained = TrainedFactors(predictor.deltas[0], predictor.host)
    watch = refinement._Watch(predictor, trained, examples, NoiseLevels((0.0,), 1), 60, None)
    for step in (10, 20, 31, 41):
        watch.look(step, 0.0, 0.0)
    assert watch.stalled == stops


def test_it_stops_when_nothing_improves_and_returns_the_best_point(
    lesson: tuple[Predictor, list[Examples]],
) -> None:
    """Steps far too long make every look worse than the start, and the start is what comes back."""
    predictor, examples = lesson
    start = predictor.deltas[0]
    wild = RefinementOptions(Terms(), steps=24, batch_size=2, scene_rows=0, learning_rate=0.5)
    refined = refine(predictor, start, examples, examples, wild, seed=0)
    assert refined.reason == "stalled"
    assert refined.steps < 24
    for key, factors in start.items():
        torch.testing.assert_close(refined.factors[key].dense(), factors.dense(), rtol=1e-3, atol=1e-5)
