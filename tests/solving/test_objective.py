"""The contrastive objective, at a layer and at the output, against its formula written out row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib_loraclr.model.low_rank import Factors
from lib_loraclr.solving.layer_problem import LayerProblem, Recording
from lib_loraclr.solving.methods.ridge import closed_form
from lib_loraclr.solving.objective import MOST_RIVALS, LayerObjective, Terms
from lib_loraclr.solving.solvers import minimize
from tests.solving.test_layer_problem import dense_target, random_problem

#: relative; the two ways differ by float64 rounding alone
CLOSE = 1e-10
#: relative; central differences of step 1e-6 have an error of about their square times the curvature, plus rounding
DIFFERENCES = 1e-5
#: relative; two different solvers that both stop at a small gradient
OPTIMUM = 1e-5

#: a hinge that acts on a good part of the rows
HINGED = Terms(positive=0.7, negative=0.6, margin=0.7, delta=0.05)
QUADRATIC = replace(HINGED, negative=0.0)


def slow_objective(delta: Tensor, problem: LayerProblem, start: Tensor, terms: Terms) -> Tensor:
    """`LayerObjective`'s formula on the dense `ΔW [d_out, d_in]`, one row at a time; differentiable."""
    targets = [recording.inputs @ dense_target(problem, recording.active).mT for recording in problem.recordings]
    sizes = [target.square().sum(1).mean() for target in targets]
    own = [size for recording, size in zip(problem.recordings, sizes, strict=True) if recording.active]
    everything = sum(recording.importance for recording in problem.recordings)
    total = terms.delta * (delta - start).square().sum() / start.square().sum()
    for recording, target, size in zip(problem.recordings, targets, sizes, strict=True):
        energy = size if recording.active else sum(own) / len(own)
        for x, t in zip(recording.inputs, target, strict=True):
            output = delta @ x
            loss = terms.positive * (output - t).square().sum() / energy
            effects = [dense_target(problem, rival) @ x for rival in recording.rivals]
            ratios = [
                (output - effect).norm() / (t - effect).norm() for effect in effects if not torch.equal(t, effect)
            ]
            if ratios:
                loss = loss + terms.negative * (terms.margin - torch.stack(ratios).min()).clamp_min(0).square()
            total = total + recording.importance / everything / len(recording.inputs) * loss
    return total


def objective_of(problem: LayerProblem, terms: Terms) -> tuple[LayerObjective, Tensor, Tensor]:
    """The objective, the column space, and the closed form in its coordinates."""
    basis = problem.column_space()
    _, start = closed_form(problem, basis, 0.01)
    return LayerObjective(problem, basis, start, terms), basis, start


def nearby(start: Tensor, seed: int = 3) -> Tensor:
    """A point away from the start, so that every term has a slope."""
    generator = torch.Generator().manual_seed(seed)
    return start + 0.3 * start.std() * torch.randn(start.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("terms", [HINGED, QUADRATIC], ids=["hinged", "quadratic"])
@pytest.mark.parametrize("ranks", [(2, 3, 2), (3, 2)], ids=["three", "two"])
def test_value_and_gradient_equal_the_formula_on_the_dense_delta(ranks: tuple[int, ...], terms: Terms) -> None:
    problem = random_problem(ranks=ranks)
    objective, basis, start = objective_of(problem, terms)
    point = nearby(start)
    assert 0.2 < objective.active_share(point) < 0.9  # so both sides of the hinge are tried
    dense = (basis @ point).requires_grad_()
    expected = slow_objective(dense, problem, basis @ start, terms)
    slope = basis.mT @ torch.autograd.grad(expected, dense)[0]
    value, gradient = objective(point)
    assert float(value) == pytest.approx(float(expected.detach()), rel=CLOSE)
    assert (gradient - slope).norm() <= CLOSE * slope.norm()


def with_rivals(problem: LayerProblem, keep: Callable[[Recording], Sequence[tuple[int, ...]]]) -> LayerProblem:
    kept = [replace(recording, rivals=tuple(keep(recording))) for recording in problem.recordings]
    return replace(problem, recordings=tuple(kept))


def test_of_many_rivals_the_nearest_are_looked_at_and_no_other_would_matter() -> None:
    """Some concepts are each other's twins but for a little, so that some rivals are near and others are not."""
    problem = random_problem(ranks=(2,) * 9, size=(40, 30), rows=40)
    deltas = list(problem.deltas)
    for first in range(0, 8, 2):  # the second of each pair does a part of what the first does besides
        near, far = deltas[first], deltas[first + 1]
        deltas[first + 1] = Factors(torch.cat([near.up, far.up], 1), torch.cat([0.8 * near.down, far.down]))
    problem = replace(problem, deltas=tuple(deltas))
    objective, basis, start = objective_of(problem, HINGED)
    assert [len(group.others) for group in objective._groups] == [MOST_RIVALS] * 9 + [0]
    point = nearby(start)
    every = slow_objective(basis @ point, problem, basis @ start, HINGED)
    assert float(objective(point)[0]) == pytest.approx(float(every), rel=1e-3)
    quadratic = slow_objective(basis @ point, problem, basis @ start, QUADRATIC)
    assert float(every) > float(quadratic) * (1 + 1e-2), "control: the hinge acts"

    # rows without an effect say nothing of who is near, whatever order rivals are named in
    empty = torch.cat([torch.zeros(3, 30, dtype=torch.float64), torch.ones(37, 30, dtype=torch.float64)])
    silent = replace(problem, recordings=tuple(replace(r, inputs=r.inputs[:40] * empty) for r in problem.recordings))
    turned = with_rivals(silent, lambda recording: recording.rivals[::-1])
    values = [float(objective_of(own, HINGED)[0](point)[0]) for own in (silent, turned)]
    assert values[0] == pytest.approx(values[1], rel=CLOSE)
    every = slow_objective(basis @ point, silent, basis @ objective_of(silent, HINGED)[2], HINGED)
    assert values[0] == pytest.approx(float(every), rel=1e-3)

    def farthest(recording: Recording) -> list[tuple[int, ...]]:
        own = dense_target(problem, recording.active)
        return sorted(recording.rivals, key=lambda rival: float((dense_target(problem, rival) - own).norm()))[3:]

    other = objective_of(with_rivals(problem, farthest), HINGED)[0]
    assert float(other(point)[0]) != pytest.approx(float(every), rel=1e-3), "control: which ones matters"


def test_gradient_equals_finite_differences_and_without_the_hinge_does_not() -> None:
    objective, _, start = objective_of(random_problem(), HINGED)
    unhinged, _, _ = objective_of(random_problem(), QUADRATIC)
    point, step = nearby(start), 1e-6
    differences = torch.zeros_like(point)
    for index in range(point.numel()):
        change = torch.zeros_like(point)
        change.view(-1)[index] = step
        differences.view(-1)[index] = (objective(point + change)[0] - objective(point - change)[0]) / (2 * step)
    assert (objective(point)[1] - differences).norm() < DIFFERENCES * differences.norm()
    assert (unhinged(point)[1] - differences).norm() > 100 * DIFFERENCES * differences.norm()


def test_the_optimum_equals_that_of_a_dense_solver_and_the_closed_form_is_not_it() -> None:
    """Two concepts: the nearest rival never changes, so that the optimum is smooth enough to be compared point by point."""
    problem = random_problem(ranks=(2, 3), size=(8, 7), rows=12)
    # the closed form has the same units, and only the hinge leads away from it
    terms = replace(HINGED, negative=2.0)
    objective, basis, start = objective_of(problem, terms)
    minimum = minimize(objective, start, max_steps=2000, tolerance=1e-7)
    dense = (basis @ start).requires_grad_()
    solver = torch.optim.LBFGS(
        [dense], max_iter=400, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = slow_objective(dense, problem, basis @ start, terms)
        loss.backward()
        return loss

    solver.step(closure)
    lowest = float(slow_objective(dense.detach(), problem, basis @ start, terms))
    assert objective.active_share(minimum.value) > 0.1
    assert minimum.objective == pytest.approx(lowest, rel=OPTIMUM)
    assert (basis @ minimum.value - dense.detach()).norm() < 100 * OPTIMUM * dense.norm()
    assert float(objective(start)[0]) > lowest * 1.01


def test_without_the_hinge_the_optimum_solves_the_normal_equations() -> None:
    problem = random_problem()
    objective, basis, start = objective_of(problem, QUADRATIC)
    minimum = minimize(objective, start, max_steps=2000, tolerance=1e-8)
    pull = QUADRATIC.delta / start.square().sum()
    left, right = pull * torch.eye(10, dtype=torch.float64), pull * basis @ start
    everything = sum(recording.importance for recording in problem.recordings)
    targets = [dense_target(problem, recording.active) for recording in problem.recordings]
    sizes = [
        (recording.inputs @ target.mT).square().sum(1).mean()
        for recording, target in zip(problem.recordings, targets, strict=True)
    ]
    for recording, target, size in zip(problem.recordings, targets, sizes, strict=True):
        energy = size if recording.active else torch.stack(sizes[:-1]).mean()
        gram = (
            QUADRATIC.positive
            * recording.importance
            / everything
            / energy
            * recording.inputs.mT
            @ recording.inputs
            / len(recording.inputs)
        )
        left, right = left + gram, right + target @ gram
    expected = torch.linalg.solve(left, right.mT).mT
    assert (basis @ minimum.value - expected).norm() < OPTIMUM * expected.norm()


@pytest.mark.parametrize("deltas, inputs", [(1e-5, 1.0), (1e3, 1.0), (1.0, 1e-3), (1e-3, 1e3)])
def test_the_unit_of_deltas_and_of_inputs_does_not_matter(deltas: float, inputs: float) -> None:
    problem = random_problem()
    objective, basis, start = objective_of(problem, HINGED)
    scaled = replace(
        problem,
        deltas=tuple(delta.scaled(deltas) for delta in problem.deltas),
        recordings=tuple(replace(recording, inputs=recording.inputs * inputs) for recording in problem.recordings),
    )
    point = nearby(start)
    other = LayerObjective(scaled, basis, start * deltas, HINGED)
    assert float(other(point * deltas)[0]) == pytest.approx(float(objective(point)[0]), rel=CLOSE)
    assert other.active_share(point * deltas) == objective.active_share(point)
    assert float(objective(point * 2)[0]) != pytest.approx(float(objective(point)[0]), rel=0.01)


@pytest.mark.parametrize("margin", [0.5, 1.0, 1.5])
def test_a_margin_of_one_is_as_far_from_the_rival_as_the_concept_itself(margin: float) -> None:
    problem = random_problem(ranks=(2, 3), background=False)
    problem = replace(problem, recordings=problem.recordings[:1])
    basis = problem.column_space()
    at_home = basis.mT @ problem.deltas[0].dense()
    objective = LayerObjective(problem, basis, at_home, Terms(1.0, 1.0, margin, 1.0))
    assert float(objective(at_home)[0]) == pytest.approx(max(0.0, margin - 1) ** 2, abs=CLOSE)
    if margin != 1:  # there rounding decides
        assert objective.active_share(at_home) == (margin > 1)


def test_at_the_rivals_own_effect_the_hinge_is_whole_and_the_gradient_finite() -> None:
    problem = random_problem(ranks=(2, 3), background=False)
    problem = replace(problem, recordings=problem.recordings[:1])
    basis = problem.column_space()
    astray = basis.mT @ problem.deltas[1].dense()
    value, gradient = LayerObjective(problem, basis, astray, Terms(0.0, 1.0, 0.5, 0.0))(astray)
    assert float(value) == pytest.approx(0.25, abs=1e-6)
    assert gradient.isfinite().all()


def test_the_hinge_is_off_between_concepts_that_do_the_same() -> None:
    problem = random_problem(ranks=(2, 2))
    twin = Factors(problem.deltas[0].up.flip(1), problem.deltas[0].down.flip(0))
    twins = replace(problem, deltas=(problem.deltas[0], twin))
    objective, _, start = objective_of(twins, HINGED)
    unhinged, _, _ = objective_of(twins, QUADRATIC)
    point = nearby(start)
    assert objective.active_share(point) == 0
    assert torch.equal(objective(point)[0], unhinged(point)[0])
    assert torch.equal(objective(point)[1], unhinged(point)[1])


def test_a_style_that_is_always_active_is_part_of_every_rivals_effect() -> None:
    """Concept 2 is active on all rows: what the first must not be mistaken for is the second with it, not without."""
    problem = random_problem(background=False)
    problem = replace(
        problem,
        recordings=tuple(
            replace(recording, active=(i, 2), rivals=((1 - i, 2),))
            for i, recording in enumerate(problem.recordings[:2])
        ),
    )
    objective, basis, start = objective_of(problem, HINGED)
    for point in (start, nearby(start)):
        slow = slow_objective(basis @ point, problem, basis @ start, HINGED)
        assert torch.allclose(objective(point)[0], slow, rtol=CLOSE)
    without = replace(
        problem,
        recordings=tuple(replace(recording, rivals=((1 - i,),)) for i, recording in enumerate(problem.recordings)),
    )
    assert not torch.allclose(LayerObjective(without, basis, start, HINGED)(start)[0], objective(start)[0], rtol=1e-3)


def test_the_base_models_rows_have_no_rival() -> None:
    problem = random_problem()
    alone = replace(problem, recordings=problem.recordings[-1:])
    basis = alone.column_space()
    start = basis.mT @ alone.deltas[0].dense()
    value, _ = LayerObjective(alone, basis, start, HINGED)(start)
    assert alone.recordings[0].active == ()
    assert torch.equal(value, LayerObjective(alone, basis, start, QUADRATIC)(start)[0])
    assert LayerObjective(alone, basis, start, HINGED).active_share(start) == 0


def test_in_reduced_coordinates_it_is_the_same_function() -> None:
    """Value and gradient where rows are fewer than columns, against the whole space; λ_delta's unit is the whole start."""
    problem = random_problem(size=(40, 60), rows=3)
    objective, basis, start = objective_of(problem, HINGED)
    reduced = problem.reduced(basis)
    inner, identity = reduced.inside(start), torch.eye(basis.shape[1], dtype=torch.float64)
    small = LayerObjective(reduced.problem, identity, inner, HINGED, start_energy=start.square().sum())
    change = torch.randn_like(inner)
    value, gradient = objective(start + reduced.outside(change))
    inner_value, inner_gradient = small(inner + change)
    assert torch.allclose(inner_value, value, rtol=1e-10)
    assert torch.allclose(reduced.outside(inner_gradient), gradient, rtol=1e-8, atol=1e-10)
    assert small.active_share(inner + change) == objective.active_share(start + reduced.outside(change))
    partial = LayerObjective(reduced.problem, identity, inner, HINGED)
    assert not torch.allclose(partial(inner + change)[0], value, rtol=1e-4), "control: the part's energy is another"
