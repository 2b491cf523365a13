"""The ridge solve against `torch.linalg.solve`, its laws, its failures; L-BFGS on functions with known minima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.solving.solvers import MAX_REPAIRS, Minimum, minimize, ridge_solve

#: relative; one factorisation of a matrix with a condition number of about 1e3
CLOSE = 1e-10
#: rows, columns: more rows than columns makes the solver choose the primal form, fewer the dual one
FORMS = {"primal": (50, 12), "dual": (8, 30)}


def random_rows(n: int, d_in: int, outputs: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, d_in, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(n, outputs, generator=generator, dtype=torch.float64)


def gradient(inputs: Tensor, targets: Tensor, ridge: float, point: Tensor) -> Tensor:
    """Half the gradient of `||X K^T - T||² + λ ||K||²` at `K`."""
    return (inputs @ point.mT - targets).mT @ inputs + ridge * point


@pytest.mark.parametrize("ridge", [1e-4, 0.01, 3.0])
@pytest.mark.parametrize("form", FORMS)
def test_ridge_equals_the_dense_normal_equations_in_both_forms(form: str, ridge: float) -> None:
    inputs, targets = random_rows(*FORMS[form])
    d_in = inputs.shape[1]
    absolute = ridge * float(inputs.square().sum()) / d_in
    shifted = inputs.mT @ inputs + absolute * torch.eye(d_in, dtype=torch.float64)
    expected = torch.linalg.solve(shifted, inputs.mT @ targets).mT
    solution = ridge_solve(inputs, targets, ridge)
    assert (solution.form, solution.repairs) == (form, 0)
    assert solution.ridge == pytest.approx(absolute)
    assert (solution.value - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_zero_at_the_answer_and_nowhere_near_zero_at_another_ridges(form: str) -> None:
    inputs, targets = random_rows(*FORMS[form])
    answer, other = ridge_solve(inputs, targets, 0.01), ridge_solve(inputs, targets, 0.02)
    size = (inputs.mT @ targets).norm()
    assert gradient(inputs, targets, answer.ridge, answer.value).norm() <= CLOSE * size
    assert gradient(inputs, targets, answer.ridge, other.value).norm() > 1e-4 * size


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("form", FORMS)
def test_the_ridge_is_relative_to_the_inputs_size(form: str, scale: float) -> None:
    inputs, targets = random_rows(*FORMS[form])
    expected = ridge_solve(inputs, targets, 0.1).value
    assert (ridge_solve(inputs * scale, targets * scale, 0.1).value - expected).norm() <= CLOSE * expected.norm()


def test_no_ridge_at_all_still_solves_inputs_of_lower_rank() -> None:
    inputs, targets = random_rows(40, 12)
    inputs = inputs[:, :3] @ torch.ones(3, 12, dtype=torch.float64)
    solution = ridge_solve(inputs, targets, 0.0)
    assert solution.value.isfinite().all()
    best = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.mT
    assert torch.allclose(inputs @ solution.value.mT, inputs @ best.mT, atol=1e-6)


def test_single_precision_stays_single_and_loses_no_more_than_that() -> None:
    inputs, targets = random_rows(60, 10)
    expected = ridge_solve(inputs, targets, 0.01).value
    result = ridge_solve(inputs.float(), targets.float(), 0.01).value
    assert result.dtype == torch.float32
    assert (result.double() - expected).norm() < 1e-5 * expected.norm()


def test_inputs_that_are_zero_ask_for_nothing() -> None:
    solution = ridge_solve(torch.zeros(6, 4, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64), 0.1)
    assert torch.equal(solution.value, torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("where", ["inputs", "targets"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_overflowed_is_told_from_a_singular_matrix(where: str, value: float) -> None:
    inputs, targets = random_rows(20, 6)
    (inputs if where == "inputs" else targets)[3, 1] = value
    with pytest.raises(LoraclrError, match="NaN or infinity.*use fp32 or bf16"):
        ridge_solve(inputs, targets, 0.01)


@pytest.fixture
def failing_cholesky(monkeypatch: pytest.MonkeyPatch):
    """Makes the first factorisations fail as rounding does; gives the list of the diagonals that were tried."""
    original, tried = torch.linalg.cholesky_ex, []

    def fail_first(times: int) -> list[Tensor]:
        def factorise(matrix: Tensor):
            tried.append(matrix.diagonal().clone())
            factor, _ = original(matrix)
            return factor, torch.tensor(int(len(tried) <= times))

        monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
        return tried

    return fail_first


@pytest.mark.parametrize("failures", [1, MAX_REPAIRS])
def test_a_repair_raises_the_ridge_tenfold_and_is_reported(failing_cholesky, failures: int) -> None:
    inputs, targets = random_rows(20, 6)
    first = ridge_solve(inputs, targets, 1e-6)
    failing_cholesky(failures)
    repaired = ridge_solve(inputs, targets, 1e-6)
    assert (first.repairs, repaired.repairs) == (0, failures)
    assert repaired.ridge == pytest.approx(first.ridge * 10**failures)
    assert gradient(inputs, targets, repaired.ridge, repaired.value).norm() < CLOSE * (inputs.mT @ targets).norm()


def test_repairs_are_bounded_and_then_the_remedy_is_named(failing_cholesky) -> None:
    inputs, targets = random_rows(20, 6)
    tried = failing_cholesky(1000)
    with pytest.raises(
        LoraclrError, match=f"too alike.*{MAX_REPAIRS} repairs failed.*more prompts, or raise the ridge"
    ):
        ridge_solve(inputs, targets, 1e-6)
    assert len(tried) == MAX_REPAIRS + 1


def quadratic(condition: float = 100.0, size: int = 12):
    """A convex quadratic, and where its minimum is."""
    generator = torch.Generator().manual_seed(4)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    hessian = turn * torch.logspace(0, torch.tensor(condition).log10(), size, dtype=torch.float64) @ turn.mT
    linear = torch.randn(size, generator=generator, dtype=torch.float64)
    solution = torch.linalg.solve(hessian, linear)

    def function(point: Tensor) -> tuple[Tensor, Tensor]:
        slope = hessian @ point
        return point @ slope / 2 - linear @ point, slope - linear

    return function, solution


def rosenbrock(point: Tensor) -> tuple[Tensor, Tensor]:
    point = point.detach().requires_grad_()
    value = 100 * (point[1] - point[0] ** 2) ** 2 + (1 - point[0]) ** 2
    return value.detach(), torch.autograd.grad(value, point)[0]


def test_lbfgs_finds_the_minimum_of_a_quadratic() -> None:
    function, solution = quadratic()
    start = torch.zeros_like(solution)
    # the square root of float64's precision: below it the line search compares rounding errors
    minimum = minimize(function, start, max_steps=500, tolerance=1e-7)
    assert minimum.reason == "converged"
    assert (minimum.value - solution).norm() < 1e-6 * solution.norm()
    assert minimum.objective == pytest.approx(float(function(solution)[0]), rel=1e-12)
    assert not start.any()  # the start is left as it was


def test_lbfgs_finds_the_minimum_of_rosenbrocks_valley() -> None:
    minimum = minimize(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64), max_steps=100)
    assert minimum.reason == "converged"
    assert torch.allclose(minimum.value, torch.ones(2, dtype=torch.float64), atol=1e-5)


def test_what_lbfgs_remembers_is_what_makes_it_fast() -> None:
    function, solution = quadratic(condition=1e4)

    def run(memory: int) -> Minimum:
        return minimize(function, torch.zeros_like(solution), max_steps=60, memory=memory)

    lowest = float(function(solution)[0])
    assert run(memory=10).objective - lowest < 0.1 * (run(memory=1).objective - lowest)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_lbfgs_does_not_depend_on_the_unit_of_the_variable(scale: float) -> None:
    """LoRAs come with deltas from 1e-6 to 1, and the objective has no scale of its own."""
    function, solution = quadratic()

    def rescaled(point: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = function(point / scale)
        return value, slope / scale

    start = 2 * solution + 1
    plain = minimize(function, start, max_steps=15)
    minimum = minimize(rescaled, start * scale, max_steps=15)
    first, lowest = float(function(start)[0]), float(function(solution)[0])
    assert plain.objective - lowest < 1e-2 * (first - lowest)
    assert minimum.objective - lowest < 1e-2 * (first - lowest)


def test_every_step_descends() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    heights = [minimize(rosenbrock, start, max_steps=steps).objective for steps in range(12)]
    assert all(later < earlier for earlier, later in zip(heights, heights[1:], strict=False))


def test_a_limit_of_steps_is_told_from_convergence() -> None:
    function, solution = quadratic()
    minimum = minimize(function, torch.zeros_like(solution), max_steps=3)
    assert (minimum.reason, minimum.steps) == ("steps", 3)
    assert minimize(function, torch.zeros_like(solution), max_steps=0).objective == 0


def test_a_start_at_the_minimum_is_converged_at_once() -> None:
    minimum = minimize(lambda point: (point.square().sum(), 2 * point), torch.zeros(3), max_steps=5)
    assert (minimum.reason, minimum.steps) == ("converged", 0)


def test_convergence_on_the_last_step_is_convergence() -> None:
    def function(point: Tensor) -> tuple[Tensor, Tensor]:
        return point.square().sum() / 2, point

    minimum = minimize(function, torch.ones(3, dtype=torch.float64), max_steps=1)
    assert not minimum.value.any()
    assert minimum.reason == "converged"


def test_no_descent_along_the_gradient_is_a_stall_and_keeps_the_best_point() -> None:
    def lying(point: Tensor) -> tuple[Tensor, Tensor]:
        return point.square().sum(), -2 * point

    start = torch.ones(3, dtype=torch.float64)
    minimum = minimize(lying, start, max_steps=5)
    assert (minimum.reason, minimum.steps, minimum.objective) == ("stalled", 0, 3.0)
    assert torch.equal(minimum.value, start)


def test_a_kink_does_not_break_the_search() -> None:
    def absolute(point: Tensor) -> tuple[Tensor, Tensor]:
        return point.abs().sum(), point.sign()

    minimum = minimize(absolute, torch.tensor([0.7, -1.3], dtype=torch.float64), max_steps=100)
    assert minimum.value.isfinite().all()
    assert minimum.objective < 0.5
