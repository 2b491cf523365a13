"""A layer's problem: its statistics and targets against their definitions, written out densely."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib_loraclr.model.low_rank import Factors
from lib_loraclr.solving.layer_problem import LayerProblem, Recording

#: float64 rounding; nothing here is factored but the column space
CLOSE = 1e-12


def random_problem(
    *,
    ranks: tuple[int | None, ...] = (2, 3, 2),
    size: tuple[int, int] = (12, 10),
    rows: int = 30,
    alike: float = 2.0,
    background: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> LayerProblem:
    """A problem in float64 as a merge meets it: the concepts' inputs have much in common, their deltas nothing.

    Args:
        ranks: of the concepts' deltas; None for a concept that does not change the layer
        size: `(d_out, d_in)`
        rows: of the first recording; each further one has one more
        alike: how large the part is that all inputs share, compared with their own
        background: whether there is a recording of the base model
        scale: of the deltas
    """
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = size

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    deltas = tuple(None if r is None else Factors(draw(d_out, r) * scale, draw(r, d_in) / d_in**0.5) for r in ranks)
    shared = alike * draw(1, d_in)
    active = [(i,) for i in range(len(ranks))] + [()] * background
    rivals = [tuple(other for other in active if own and other and other != own) for own in active]
    recordings = tuple(
        Recording(shared + draw(rows + k, d_in), own, 1.0 + 0.5 * k, others)
        for k, (own, others) in enumerate(zip(active, rivals, strict=True))
    )
    return LayerProblem("lora_unet_layer", deltas, recordings)


def dense_target(problem: LayerProblem, active: tuple[int, ...]) -> Tensor:
    """`Σ D_i` over the active concepts, `[d_out, d_in]`."""
    present = [problem.deltas[i].dense() for i in active if problem.deltas[i] is not None]
    return sum(present, torch.zeros(problem.present[0].shape, dtype=torch.float64))


def dense_gram(problem: LayerProblem) -> Tensor:
    """`S = Σ c_i X_i^T X_i / n_i`, row by row, `[d_in, d_in]`."""
    total = 0
    for recording in problem.recordings:
        for x in recording.inputs:
            total = total + recording.importance / len(recording.inputs) * torch.outer(x, x)
    return total


def gram(problem: LayerProblem) -> Tensor:
    return problem.stacked().mT @ problem.stacked()


def test_gram_is_the_weighted_sum_of_outer_products() -> None:
    problem = random_problem()
    assert torch.allclose(gram(problem), dense_gram(problem), rtol=CLOSE, atol=CLOSE)


def test_recordings_count_by_importance_and_not_by_their_number_of_rows() -> None:
    problem = random_problem()
    twice = replace(
        problem,
        recordings=tuple(
            replace(recording, inputs=torch.cat([recording.inputs, recording.inputs]))
            for recording in problem.recordings
        ),
    )
    more = replace(
        problem,
        recordings=tuple(replace(recording, importance=2 * recording.importance) for recording in problem.recordings),
    )
    assert torch.allclose(gram(twice), gram(problem), rtol=CLOSE)
    assert torch.allclose(gram(more), 2 * gram(problem), rtol=CLOSE)


def test_a_recording_without_rows_has_a_finite_weight() -> None:
    assert Recording(torch.empty(0, 4), (0,), 3.0).weight == 3.0


@pytest.mark.parametrize("active", [(), (0,), (2,), (0, 2), (1,), (1, 2)])
def test_the_target_is_the_sum_of_the_active_deltas(active: tuple[int, ...]) -> None:
    problem = random_problem(ranks=(2, None, 3))
    target = problem.target(active)
    assert target.shape == (12, 10)
    assert target.up.dtype == torch.float64
    assert torch.allclose(target.dense(), dense_target(problem, active), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("size", [(12, 10), (5, 10)], ids=["ranks fit", "more rank than outputs"])
def test_the_column_space_holds_all_that_the_concepts_can_do(size: tuple[int, int]) -> None:
    problem = random_problem(size=size)
    basis = problem.column_space()
    assert basis.shape == (size[0], min(size[0], 7))
    assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=CLOSE)
    for delta in problem.present:
        assert torch.allclose(basis @ (basis.mT @ delta.dense()), delta.dense(), atol=10 * CLOSE)


def test_concepts_that_write_to_the_same_directions_share_them() -> None:
    problem = random_problem(ranks=(2, 2))
    first, second = problem.present
    shared = replace(problem, deltas=(first, Factors(first.up @ torch.ones(2, 2).double(), second.down)))
    assert shared.column_space().shape[1] == 2
    assert problem.column_space().shape[1] == 4


def test_targets_in_coordinates_are_what_the_concepts_do_on_their_inputs() -> None:
    problem = random_problem(ranks=(2, None, 3))
    basis = problem.column_space()
    for recording, target in zip(problem.recordings, problem.targets_in(basis), strict=True):
        expected = recording.inputs @ dense_target(problem, recording.active).mT
        assert torch.allclose(target @ basis.mT, expected, atol=10 * CLOSE)


@pytest.mark.parametrize("rows", [3, 30], ids=["few rows", "many rows"])
def test_a_reduced_problem_says_the_same_of_every_delta(rows: int) -> None:
    """Outputs and targets of all recordings, at any change from any start, computed with and without the reduction."""
    problem = random_problem(ranks=(2, None, 3), size=(40, 60), rows=rows)
    basis = problem.column_space()
    reduced = problem.reduced(basis)
    small, few = reduced.problem, sum(len(r.inputs) for r in problem.recordings) < 60
    assert few == (rows == 3) == (reduced.span is not None)
    for full, inner in zip(problem.targets_in(basis), small.targets_in(torch.eye(5, dtype=torch.float64)), strict=True):
        assert torch.allclose(full, inner, rtol=1e-10, atol=1e-10)
    point = torch.randn(5, 60, dtype=torch.float64)
    for full, inner in zip(problem.recordings, small.recordings, strict=True):
        expected = full.inputs @ point.mT
        assert torch.allclose(inner.inputs @ reduced.inside(point).mT, expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(full.inputs @ reduced.outside(reduced.inside(point)).mT, expected, rtol=1e-10, atol=1e-10)
        assert (inner.active, inner.weight) == (full.active, full.weight)
    assert [d is None for d in small.deltas] == [False, True, False]


def test_the_span_of_the_inputs_does_not_hold_every_delta() -> None:
    """The control of the test above: what is outside the span is lost, and comes back from nowhere."""
    reduced = (problem := random_problem(size=(40, 60), rows=3)).reduced(problem.column_space())
    point = torch.randn(5, 60, dtype=torch.float64)
    assert float((reduced.outside(reduced.inside(point)) - point).norm()) > 0.1 * float(point.norm())
