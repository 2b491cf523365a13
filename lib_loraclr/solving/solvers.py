"""Linear and quasi-Newton solvers. Each returns its value together with how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..model import precise

#: how often a Gram matrix that is not positive definite is given ten times more ridge before it is refused
MAX_REPAIRS = 6


@dataclass(frozen=True)
class RidgeSolution:
    """How a ridge problem was solved.

    Attributes:
        value: the minimiser `K`, `[R, d_in]`
        form: "primal" or "dual"
        ridge: the absolute ridge that was used
        repairs: how many times the ridge had to be raised tenfold
    """

    value: Tensor
    form: str
    ridge: float
    repairs: int


def ridge_solve(inputs: Tensor, targets: Tensor, ridge: float) -> RidgeSolution:
    """The `K` that minimises `||inputs K^T - targets||_F² + λ ||K||_F²`.

    Primal form `K = T^T X (X^T X + λ)^-1` or dual form `K = T^T (X X^T + λ)^-1 X`, whichever matrix is
    smaller; both are the same by the push-through identity. RegMean (arXiv 2212.09849, eq. 2) is the case of `inputs`
    stacked over models.

    Args:
        inputs: `X`, `[n, d_in]`, each row scaled by the root of its weight
        targets: `T`, `[n, R]`, scaled likewise
        ridge: `λ` relative to `trace(X^T X) / d_in`

    Raises:
        LoraclrError: `inputs` or `targets` are not finite, or the matrix stays singular after the bounded repairs
    """
    if not (inputs.isfinite().all() and targets.isfinite().all()):
        raise LoraclrError("The recorded inputs hold NaN or infinity: the model overflowed; use fp32 or bf16 for it.")
    n, d_in = inputs.shape
    mean_eigenvalue = float(inputs.square().sum()) / d_in
    if mean_eigenvalue == 0:
        return RidgeSolution(targets.new_zeros(targets.shape[1], d_in), "primal", 0.0, 0)
    dual = n < d_in
    # the products lose little in fp32, the factorisation would: it squares the condition number
    gram = precise(inputs @ inputs.mT if dual else inputs.mT @ inputs)
    floor = len(gram) * torch.finfo(inputs.dtype).eps
    absolute = max(ridge, floor) * mean_eigenvalue
    factor, absolute, repairs = _cholesky(gram, absolute)
    if dual:
        value = torch.cholesky_solve(precise(targets), factor).to(inputs).mT @ inputs
    else:
        value = torch.cholesky_solve(precise(inputs.mT @ targets), factor).to(inputs).mT
    return RidgeSolution(value, "dual" if dual else "primal", absolute, repairs)


def _cholesky(gram: Tensor, ridge: float) -> tuple[Tensor, float, int]:
    """Cholesky factor of `gram + ridge`, raising the ridge tenfold up to `MAX_REPAIRS` times where rounding demands it."""
    gram = (gram + gram.mT) / 2
    for repairs in range(MAX_REPAIRS + 1):
        shifted = gram.clone()
        shifted.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return factor, ridge, repairs
        ridge *= 10
    raise LoraclrError(
        f"The recorded inputs of a layer are too alike to solve for ({MAX_REPAIRS} repairs failed): "
        "record more prompts, or raise the ridge."
    )


@dataclass(frozen=True)
class Minimum:
    """How a minimisation ended.

    Attributes:
        value: the best point found, shaped like the start
        objective: the objective there
        reason: "converged" (small gradient), "stalled" (no further descent) or "steps" (the limit was reached)
        steps: iterations made
    """

    value: Tensor
    objective: float
    reason: str
    steps: int


def minimize(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    max_steps: int,
    tolerance: float = 1e-6,
    memory: int = 10,
) -> Minimum:
    """L-BFGS (Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5) with a line search that bears kinks.

    The unit of the variable does not matter: the first step is as long as the point, and no threshold is absolute.

    Args:
        function: point -> (objective `[]`, gradient shaped like the point)
        start: where to begin
        max_steps: limit of iterations
        tolerance: the gradient's norm, relative to that at the start, that counts as converged
        memory: pairs of steps and gradient changes kept
    """
    point = start
    value, gradient = function(point)
    first_norm = float(gradient.norm())
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for step in range(max_steps + 1):
        if float(gradient.norm()) <= tolerance * first_norm:
            return Minimum(point, float(value), "converged", step)
        if step == max_steps:
            break
        direction = _two_loop(gradient, pairs) if pairs else -gradient * (float(point.norm()) or 1.0) / gradient.norm()
        found = _line_search(function, point, value, gradient, direction)
        if found is None:
            return Minimum(point, float(value), "stalled", step)
        next_point, value, next_gradient = found
        change, difference = next_point - point, next_gradient - gradient
        curvature = float((change * difference).sum())
        # the objective is only piecewise smooth: pairs across a kink may have no positive curvature, and are left out
        if curvature > torch.finfo(point.dtype).eps * float(change.norm() * difference.norm()):
            pairs = [*pairs, (change, difference, 1 / curvature)][-memory:]
        point, gradient = next_point, next_gradient
    return Minimum(point, float(value), "steps", max_steps)


def _two_loop(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Minus the inverse-Hessian estimate times the gradient (algorithm 7.4)."""
    direction = -gradient
    coefficients = []
    for change, difference, inverse in reversed(pairs):
        coefficient = inverse * (change * direction).sum()
        direction = direction - coefficient * difference
        coefficients.append(coefficient)
    _, difference, inverse = pairs[-1]
    direction = direction / (inverse * difference.square().sum())
    for (change, difference, inverse), coefficient in zip(pairs, reversed(coefficients), strict=True):
        direction = direction + change * (coefficient - inverse * (difference * direction).sum())
    return direction


def _line_search(function, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor):
    """A step that descends and leaves most of the slope behind: weak Wolfe conditions by bisection, c = 1e-4 and 0.9.

    Lewis and Overton, Nonsmooth optimization via quasi-Newton methods (2013), algorithm 2.6, made for functions with kinks.
    After 30 trials the last step that descended is taken; None if there was none.
    """
    slope = (gradient * direction).sum()
    length, shortest, longest, found = 1.0, 0.0, math.inf, None
    for _ in range(30):
        candidate = point + length * direction
        new_value, new_gradient = function(candidate)
        if new_value <= value + 1e-4 * length * slope:
            found = candidate, new_value, new_gradient
            if (new_gradient * direction).sum() >= 0.9 * slope:
                return found
            shortest = length
        else:
            longest = length
        length = (shortest + longest) / 2 if longest < math.inf else 2 * shortest
    return found
