"""A layer's problem: its statistics and targets against their definitions, written out densely."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib_loraclr.model.low_rank import Factors, orthonormal_basis
from lib_loraclr.solving.error_units import units
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


def slow_units(problem: LayerProblem) -> list[float]:
    """`e_i`, from the dense deltas: the concepts' own mean squared effects, a hundredth of their mean at least; of the base model
    that mean."""
    effects = []
    for recording in problem.recordings:
        target = dense_target(problem, recording.active)
        sizes = [float((target @ x).square().sum()) for x in recording.inputs] if recording.active else []
        effects.append(sum(sizes) / len(sizes) if any(sizes) else None)
    known = [effect for effect in effects if effect is not None]
    mean = sum(known) / len(known) if known else 1.0
    return [mean if effect is None else max(effect, mean / 100) for effect in effects]


def dense_gram(problem: LayerProblem) -> Tensor:
    """`S = Σ c_i X_i^T X_i / (n_i e_i)`, row by row, `[d_in, d_in]`."""
    total = 0
    for recording, unit in zip(problem.recordings, slow_units(problem), strict=True):
        for x in recording.inputs:
            total = total + recording.importance / len(recording.inputs) / unit * torch.outer(x, x)
    return total


def gram(problem: LayerProblem) -> Tensor:
    stacked = torch.cat(problem.scaled_inputs())
    return stacked.mT @ stacked


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
    problem = random_problem()
    nothing = replace(problem.recordings[1], inputs=torch.empty(0, 10, dtype=torch.float64), importance=3.0)
    problem = replace(problem, recordings=(problem.recordings[0], nothing))
    first, second = problem.units()
    assert second == first, "of a recording without rows nothing is known, and the others' mean stands in"
    assert problem.weights()[1] == pytest.approx(3.0 / second, rel=CLOSE)


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
        assert (inner.active, inner.importance) == (full.active, full.importance)
    assert small.weights() == pytest.approx(problem.weights(), rel=1e-10)
    assert [d is None for d in small.deltas] == [False, True, False]


def test_the_span_of_the_inputs_does_not_hold_every_delta() -> None:
    """The control of the test above: what is outside the span is lost, and comes back from nowhere."""
    reduced = (problem := random_problem(size=(40, 60), rows=3)).reduced(problem.column_space())
    point = torch.randn(5, 60, dtype=torch.float64)
    assert float((reduced.outside(reduced.inside(point)) - point).norm()) > 0.1 * float(point.norm())


def test_units_are_each_concepts_own_effect_and_the_base_models_their_mean() -> None:
    problem = random_problem(ranks=(2, None, 3))
    assert problem.units() == pytest.approx(slow_units(problem), rel=CLOSE)
    own, missing, other, base = problem.units()
    assert missing == base == pytest.approx((own + other) / 2, rel=CLOSE)
    assert own != pytest.approx(other, rel=0.01), "control: they are not one number"


@pytest.mark.parametrize("strength", [0.5, 0.2, 1e-3, 1e-8])
def test_a_unit_is_never_below_a_hundredth_of_the_mean(strength: float) -> None:
    problem = random_problem(ranks=(2, 2), background=False)
    strong, weak = problem.deltas
    problem = replace(problem, deltas=(strong, weak.scaled(strength)))
    effects = [
        float((r.inputs @ dense_target(problem, r.active).mT).square().sum(1).mean()) for r in problem.recordings
    ]
    least = sum(effects) / 2 / 100
    assert problem.units() == pytest.approx([effects[0], max(effects[1], least)], rel=CLOSE)
    assert (effects[1] < least) == (strength < 0.1), "control: both cases are tried"


def test_a_style_that_is_always_active_is_in_nobody_elses_unit() -> None:
    """Fox beside a style that changes a hundred times as much: its errors are still measured in what the fox does."""
    problem = random_problem(ranks=(2, 2), background=True)
    fox, style = problem.deltas
    ours, of_style, plain = problem.recordings
    beside = (replace(ours, active=(0, 1), absent=(1,)), of_style, replace(plain, active=(1,), absent=(1,)))
    together = replace(problem, deltas=(fox, style.scaled(10)), recordings=beside)
    alone = replace(together, recordings=(ours, of_style, plain))
    assert together.units() == pytest.approx(alone.units(), rel=CLOSE)
    forgotten = replace(together, recordings=(replace(beside[0], absent=()), *beside[1:]))
    assert forgotten.units()[0] > 10 * together.units()[0], "control: it would be in it"


def test_units_of_nothing_are_one() -> None:
    assert units([]) == []
    assert units([None, 0.0]) == [1.0, 1.0]
    assert units([4.0, None, 2.0]) == [4.0, 3.0, 2.0]


def test_rows_on_which_no_concept_is_active_are_not_what_a_cut_keeps() -> None:
    problem = random_problem()
    called = problem.called_inputs()
    assert len(called) == len(problem.recordings) - 1
    for inputs, scaled, recording in zip(called, problem.scaled_inputs(), problem.recordings, strict=False):
        assert recording.active and torch.equal(inputs, scaled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [2.0**-7, 1.0, 2.0**7])
def test_the_column_space_does_not_depend_on_where_a_lora_keeps_its_scale(scale: float, dtype: torch.dtype) -> None:
    """Rank 128 whose alpha is 1 beside rank 32 whose alpha is its rank: no direction of either is taken for rounding."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    small, large = Factors(draw(320, 128) / 128, draw(128, 200)), Factors(draw(320, 32), draw(32, 200))
    moved = Factors(small.up * scale, small.down / scale)
    basis = LayerProblem("x", (moved, large)).column_space()
    assert basis.shape[1] == 160
    for delta in (small.dense(), large.dense()):
        assert float((basis @ (basis.mT @ delta) - delta).norm()) < 1e-5 * float(delta.norm())


def test_a_strong_concept_does_not_hide_a_weak_one_and_rounding_is_no_direction() -> None:
    problem = random_problem(ranks=(2, 2))
    strong, weak = problem.present
    hidden = replace(problem, deltas=(strong, weak.scaled(1e-16)))
    assert hidden.column_space().shape[1] == 4
    together = torch.cat([strong.up, weak.up * 1e-16], dim=1)
    assert orthonormal_basis(together).shape[1] == 2, "control: in one matrix with the strong one it would be lost"
    mixed = Factors(strong.up @ torch.randn(2, 8, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64))
    assert replace(problem, deltas=(mixed, weak)).column_space().shape[1] == 4, "eight factors, two directions"
