"""LoRACLR as published, for comparison: the objective and optimiser of the authors' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model import Factors
from ...request import option
from ..layer_problem import LayerProblem, Recording
from . import LayerResult, merge_method


@dataclass(frozen=True)
class PaperOptions:
    """The paper's figures."""

    margin: float = option(0.5, "The paper's m.", minimum=0.0, maximum=1e6)
    lambda_delta: float = option(0.001, "The paper's λ_delta.", minimum=0.0, maximum=10.0)
    mse: float = option(0.1, "Weight of the mean squared error that the authors' code adds.", minimum=0.0, maximum=10.0)
    iterations: int = option(50, "Steps of AdamW.", minimum=1, maximum=100000)
    learning_rate: float = option(1e-4, "Of AdamW.", minimum=1e-8, maximum=1.0)
    weight_decay: float = option(1e-4, "Of AdamW.", minimum=0.0, maximum=1.0)


@merge_method(
    name="paper",
    label="LoRACLR as published",
    source="LoRACLR, arXiv 2412.09622, eq. 3 to 6, and github.com/enisimsar/LoRACLR",
    options=PaperOptions,
    weight=True,
)
def paper(problem: LayerProblem, options: PaperOptions) -> LayerResult:
    """The authors' objective and optimiser, for comparison: AdamW on a full matrix, distances over whole tensors.

    `L = 1/N Σ_i [ d_p,i² + max(0, m - d_n,i)² ] + λ_delta ||ΔW||`, with `d_p,i = ||Y_i - Ŷ_i||` one number per concept and
    `d_n,i = min_j ||Y_i - Ŷ_j||` the distance to the nearest other concept's output, `Y_i = X_i (W + D_i)^T` and
    `Ŷ_i = X_i (W + ΔW)^T`; of the iterates the one with the least loss. On real layers `d_n` is 40 to 1400, so that the hinge
    never acts (the note `active_hinges` says how often it did); the result is nearly full rank and loses by truncation. Costs
    50 products with the dense matrix.
    """
    reference = problem.present[0].up
    d_out, d_in = problem.present[0].shape
    objective = PaperObjective(problem, options)
    delta = torch.zeros(d_out, d_in, dtype=reference.dtype, device=reference.device, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=options.learning_rate, weight_decay=options.weight_decay)
    least, best, active = float("inf"), delta.detach().clone(), 0.0
    with torch.enable_grad():
        for _ in range(options.iterations):
            optimizer.zero_grad()
            loss, acting = objective(delta)
            if float(loss.detach()) < least:
                least, best = float(loss.detach()), delta.detach().clone()
            active += acting / options.iterations
            loss.backward()
            optimizer.step()
    identity = torch.eye(min(d_out, d_in), dtype=best.dtype, device=best.device)
    factors = Factors(identity, best) if d_out <= d_in else Factors(best, identity)
    return LayerResult(factors, {"active_hinges": active})


class PaperObjective:
    """The paper's loss as a function of `ΔW [d_out, d_in]`.

    Without the base outputs `X W^T`, which are the larger part of `Y`, the negative distance would be another: outputs of
    different concepts differ first of all by what goes in. The rows without triggers are no concept's.
    """

    def __init__(self, problem: LayerProblem, options: PaperOptions) -> None:
        """Rows of different lengths are compared over their common number of rows."""
        self._options = options
        self._concepts = [recording for recording in problem.recordings if recording.own]
        self._targets = [r.inputs @ problem.target(r.active).dense().mT for r in self._concepts]
        self._between = [
            [self._base(problem, one, other) for other in self._concepts if other is not one] for one in self._concepts
        ]

    @staticmethod
    def _base(problem: LayerProblem, one: Recording, other: Recording) -> Tensor:
        """`(X_i - X_j) W^T`"""
        common = min(len(one.inputs), len(other.inputs))
        return (one.inputs[:common] - other.inputs[:common]) @ problem.weight.mT

    def __call__(self, delta: Tensor) -> tuple[Tensor, float]:
        """The loss `[]`, and the share of concepts whose hinge acts."""
        options, total, acting = self._options, delta.new_zeros(()), 0
        outputs = [recording.inputs @ delta.mT for recording in self._concepts]
        for i, (output, target) in enumerate(zip(outputs, self._targets, strict=True)):
            total = total + (output - target).square().sum() + options.mse * (output - target).square().mean()
            others = outputs[:i] + outputs[i + 1 :]
            if others:
                hinge = (options.margin - self._nearest(target, others, self._between[i])).clamp_min(0)
                total, acting = total + hinge.square(), acting + bool(hinge.detach() > 0)
        size = delta.square().sum().clamp_min(torch.finfo(delta.dtype).tiny).sqrt()
        number = max(1, len(outputs))
        return total / number + options.lambda_delta * size, acting / number

    @staticmethod
    def _nearest(target: Tensor, others: Sequence[Tensor], between: Sequence[Tensor]) -> Tensor:
        """`min_j ||Y_i - Ŷ_j||`, `[]`"""
        distances = []
        for other, base in zip(others, between, strict=True):
            difference = base + target[: len(base)] - other[: len(base)]
            distances.append(difference.square().sum().clamp_min(1e-12).sqrt())
        return torch.stack(distances).min()
