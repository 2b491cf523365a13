"""The refinement at the model's output."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.model.host import Conditioning, Host
from lib_loraclr.model.low_rank import Factors, concatenate
from lib_loraclr.recording.examples import Examples, PathPlan, add_nearest_other, record_examples
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import Teacher, make_teachers
from lib_loraclr.refining import refinement
from lib_loraclr.refining.refinement import GradScaler, refine
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests.small import PROMPTS, concept, predictor_of

OPTIONS = RefinementOptions(Terms(), steps=4, batch_size=4, learning_rate=2e-3)


def examples_of(count: int, name: str, *, concept_index: int | None = 0) -> Examples:
    """Examples whose latents hold their own number, so that a draw can be told."""
    numbers = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 4, 2, 2)
    teacher = Teacher(name, concept_index, (0,), (name,))
    effect = torch.full((count,), 2.0)
    return Examples(teacher, (name,) * count, numbers, torch.arange(count), numbers + 1, effect, numbers - 1)


@pytest.fixture(scope="module")
def lesson(host: Host, demo: Path) -> tuple[Predictor, list[Examples]]:
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    return predictor, [
        record_examples(predictor, teacher, PathPlan(seed=0, paths=1, steps=3, kept=3)) for teacher in teachers
    ]


def test_every_point_is_drawn_once_before_any_is_drawn_again() -> None:
    turns = refinement._Turns([examples_of(3, "a"), examples_of(5, "b")], torch.Generator().manual_seed(0))
    drawn = [turns.next() for _ in range(30)]
    for name, count in (("a", 3), ("b", 5)):
        order = [k for own, k in drawn if own.teacher.name == name]
        assert sorted(order[:count]) == list(range(count))
        assert len(order) == 15


def test_a_batch_holds_prompts_and_negative_prompts_with_their_own_targets() -> None:
    own = examples_of(6, "a"), examples_of(6, "b", concept_index=None)
    batch = refinement._Sampler(own, "ugly", seed=0).draw(8, torch.device("cpu"))
    assert batch.prompts.count("ugly") == 2
    for prompt, x, target, apart in zip(batch.prompts, batch.x, batch.target, batch.apart, strict=True):
        assert torch.equal(target, x - 1 if prompt == "ugly" else x + 1)
        assert apart == 0
    assert torch.equal(batch.scale, torch.full((8,), 2.0))


@pytest.mark.parametrize("teachers", [2, 3, 6, 7])
def test_every_teacher_is_asked_for_both_kinds_of_prediction(teachers: int) -> None:
    """However many teachers there are: turns that run in step with the batch would ask some for one kind only."""
    own = [examples_of(4, f"t{k}") for k in range(teachers)]
    sampler = refinement._Sampler(own, "", seed=0)
    batches = [sampler.draw(8, torch.device("cpu")) for _ in range(teachers)]
    asked = [prompt for batch in batches for prompt in batch.prompts if prompt]
    assert {asked.count(f"t{k}") for k in range(teachers)} <= {5, 6, 7}


def test_the_penalty_and_its_gradient_are_those_of_the_dense_matrices() -> None:
    generator = torch.Generator().manual_seed(0)

    def factors() -> Factors:
        return Factors(torch.randn(5, 2, generator=generator), torch.randn(2, 7, generator=generator))

    anchor = {"a": factors(), "b": factors()}
    moved = {key: Factors(f.up.clone().requires_grad_(), (f.down + 0.1).requires_grad_()) for key, f in anchor.items()}
    value = refinement._delta_penalty(moved, anchor, 0.3, GradScaler(enabled=False))
    twins = {key: Factors(f.up.detach().requires_grad_(), f.down.detach().requires_grad_()) for key, f in moved.items()}
    distance = sum((twins[key].dense() - anchor[key].dense()).square().sum() for key in anchor)
    dense = 0.3 * distance / sum(f.dense().square().sum() for f in anchor.values())
    dense.backward()
    assert value == pytest.approx(float(dense.detach()), rel=1e-4)
    for key in moved:
        torch.testing.assert_close(moved[key].up.grad, twins[key].up.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moved[key].down.grad, twins[key].down.grad, rtol=1e-4, atol=1e-6)


def test_micro_batches_give_the_gradient_of_the_whole_batch(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson
    examples = add_nearest_other(predictor, examples, [0, 1])
    batch = refinement._Sampler(examples, "", seed=1).draw(5, predictor.host.device)
    gradients = []
    start = {key: concatenate(deltas) for key, deltas in predictor.together([0, 1]).items()}
    for micro_batch in (5, 2):
        parameters = {key: refinement._trainable(f, predictor.host.device) for key, f in start.items()}
        terms = Terms(negative=1.0, margin=1.5)
        loss, active = refinement._backward(predictor, parameters, batch, terms, micro_batch, GradScaler(enabled=False))
        gradients.append((loss, active, {key: f.up.grad for key, f in parameters.items()}))
    (whole, active, expected), (parts, active_parts, found) = gradients
    assert parts == pytest.approx(whole, rel=1e-4)
    assert active == active_parts > 0
    scale = max(float(g.abs().max()) for g in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-4 * scale)


def test_small_memory_makes_small_batches_and_then_recomputes(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    parameters = {key: refinement._trainable(f, predictor.host.device) for key, f in predictor.deltas[0].items()}
    sampler = refinement._Sampler(examples, "", seed=1)
    options = replace(OPTIONS, batch_size=8)
    plans = []
    for megabytes in (4096, 100, 1):
        monkeypatch.setattr(predictor, "memory", megabytes << 20)
        plans.append(refinement._fit(predictor, parameters, sampler, options))
    assert plans[0] == refinement._Fit(8, recompute=False)
    assert plans[1].samples < 8
    assert plans[2] == refinement._Fit(1, recompute=True)


def test_a_card_that_runs_out_of_memory_makes_it_recompute_or_says_so(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, examples = lesson
    parameters = {key: refinement._trainable(f, predictor.host.device) for key, f in predictor.deltas[0].items()}
    sampler = refinement._Sampler(examples, "", seed=1)
    predictor, small = copy.copy(predictor), copy.copy(predictor.host)
    predictor.host, predictor.memory, recomputing = small, 4096 << 20, []

    def denoise(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if len(x) > 1 or not recomputing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return type(small).denoise(small, x, t, conditioning)

    monkeypatch.setattr(small, "denoise", denoise, raising=False)
    with pytest.raises(LoraclrError, match="graphics memory is too small to refine this merge.*effort fast"):
        refinement._fit(predictor, parameters, sampler, replace(OPTIONS, batch_size=8))

    @contextmanager
    def recompute() -> Iterator[None]:
        recomputing.append(True)
        yield

    monkeypatch.setattr(small, "recomputing", recompute, raising=False)
    assert refinement._fit(predictor, parameters, sampler, replace(OPTIONS, batch_size=8)) == refinement._Fit(
        1, recompute=True
    )


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("out"), RuntimeError("Not enough memory, use lower resolution")]
)
def test_memory_that_runs_out_while_refining_costs_nothing_but_time(
    lesson: tuple[Predictor, list[Examples]], monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    predictor, examples = lesson
    options = replace(OPTIONS, batch_size=4, steps=3)
    expected = refine(predictor, predictor.deltas[0], examples, examples, options, seed=0)
    predictor, small = copy.copy(predictor), copy.copy(predictor.host)
    predictor.host, sizes = small, []

    def denoise(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(x))
            if len(sizes) > 3 and len(x) > 1:  # the look at what fits is over
                raise error
        return type(small).denoise(small, x, t, conditioning)

    monkeypatch.setattr(small, "denoise", denoise, raising=False)
    found = refine(predictor, predictor.deltas[0], examples, examples, options, seed=0)
    assert {4, 2} <= set(sizes) and sizes[-8:] == [1] * 8, "half as many, again half, and no more from then on"
    for key, factors in expected.factors.items():
        torch.testing.assert_close(found.factors[key].dense(), factors.dense(), rtol=1e-3, atol=1e-5)


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


def test_it_stops_when_nothing_improves_and_returns_the_best_point(
    lesson: tuple[Predictor, list[Examples]],
) -> None:
    """Steps far too long make every look worse than the start, and the start is what comes back."""
    predictor, examples = lesson
    start = predictor.deltas[0]
    wild = RefinementOptions(Terms(), steps=24, batch_size=2, learning_rate=0.5)
    refined = refine(predictor, start, examples, examples, wild, seed=0)
    assert refined.reason == "stalled"
    assert refined.steps < 24
    for key, factors in start.items():
        torch.testing.assert_close(refined.factors[key].dense(), factors.dense(), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_is_refused_with_the_remedy(lesson: tuple[Predictor, list[Examples]]) -> None:
    predictor, examples = lesson
    broken = {key: f.scaled(torch.nan) for key, f in predictor.deltas[0].items()}
    with pytest.raises((LoraclrError, RuntimeError), match="lower learning_rate|converge|NaN|nan"):
        refine(predictor, broken, examples, examples, OPTIONS, seed=0)
