"""The closed form of the contrastive objective's positive term."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...model import Factors, concatenate
from ...request import option
from ..layer_problem import LayerProblem
from ..solvers import RidgeSolution, ridge_solve
from . import LayerResult, merge_method


@dataclass(frozen=True)
class RidgeOptions:
    """Options of the closed form."""

    ridge: float = option(
        0.01,
        "Pull towards the average of the LoRAs, relative to the mean energy of the recorded inputs.",
        minimum=0.0,
        maximum=10.0,
    )


@merge_method(name="ridge", label="Closed form", source="RegMean, arXiv 2212.09849", options=RidgeOptions)
def ridge(problem: LayerProblem, options: RidgeOptions) -> LayerResult:
    """Makes each layer do on every concept's inputs what that concept's own LoRA does, in closed form.

    `ΔW = argmin Σ_i c_i/(n_i e_i) ||X_i (ΔW - D_i)^T||_F² + λ ||ΔW - D̄||_F²`, with `D̄` the average of the deltas: in
    directions no input went, the data say nothing, and the average is the neutral answer (a single LoRA comes back as it was).
    `e_i` is each concept's own effect in the layer (`units`), in which errors are measured however strong it is.
    RegMean has no such unit, and pulls towards the Grams' diagonal instead; the minimiser on the data is the same.

    Exact at rank `Σ r_i`. Fails where concepts have (nearly) the same inputs but different effects: it averages there. Costs
    one Cholesky factorisation of size `min(d_in, Σ n_i)` per layer.
    """
    basis = problem.column_space()
    solution, start = closed_form(problem, basis, options.ridge)
    return LayerResult(
        Factors(basis, start), {"ridge": solution.ridge, "repairs": solution.repairs, "dual": solution.form == "dual"}
    )


def closed_form(problem: LayerProblem, basis: torch.Tensor, strength: float) -> tuple[RidgeSolution, torch.Tensor]:
    """The closed form in coordinates of the column space, `[R, d_in]`, and how it was solved.

    Args:
        basis: `U`, `[d_out, R]`, orthonormal
        strength: the ridge, relative
    """
    mean = concatenate(problem.present).scaled(1 / len(problem.deltas))
    prior = (basis.mT @ mean.up) @ mean.down
    weights = problem.weights()
    targets = torch.cat([t * weight**0.5 for t, weight in zip(problem.targets_in(basis), weights, strict=True)])
    inputs = torch.cat(problem.scaled_inputs())
    solution = ridge_solve(inputs, targets - inputs @ prior.mT, strength)
    return solution, prior + solution.value
