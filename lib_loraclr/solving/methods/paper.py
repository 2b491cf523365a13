"""LoRACLR as published, for comparison: the objective and optimiser of the authors' code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...model import Factors
from ...request import option
from ..layer_problem import LayerProblem
from . import LayerResult, merge_method


@dataclass(frozen=True)
class PaperOptions:
    """The paper's figures."""

    margin: float = option(0.5, "The paper's m.", minimum=0.0, maximum=1e6)
    lambda_delta: float = option(0.001, "The paper's λ_delta.", minimum=0.0, maximum=10.0)
    mse: float = option(0.1, "Weight of the mean squared error that the authors' code adds.", minimum=0.0, maximum=10.0)
    iterations: int = option(50, "Steps of AdamW.", minimum=1, maximum=100000)
    learning_rate: float = option(1e-4, "Of AdamW.", minimum=1e-8, maximum=1.0)


@merge_method(
    name="paper",
    label="LoRACLR as published",
    source="LoRACLR, arXiv 2412.09622, eq. 3 to 6, and github.com/enisimsar/LoRACLR",
    options=PaperOptions,
)
def paper(problem: LayerProblem, options: PaperOptions) -> LayerResult:
    """The authors' objective and optimiser, for comparison: AdamW on a full matrix, distances over whole tensors.

    `L = 1/N Σ_i [ d_p,i² + max(0, m - d_n,i)² ] + λ_delta ||ΔW||`, with `d_p,i = ||X_i ΔW^T - X_i D_i^T||` one number per
    concept and `d_n,i` the distance to the nearest other concept's output. On real layers `d_n` is 40 to 1400, so that
    the hinge never acts; the result is nearly full rank and loses by truncation. Costs 50 products with the dense matrix.
    """
    reference = problem.present[0].up
    d_out, d_in = problem.present[0].shape
    targets = [recording.inputs @ problem.target(recording.active).dense().mT for recording in problem.recordings]
    delta = torch.zeros(d_out, d_in, dtype=reference.dtype, device=reference.device, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=options.learning_rate)
    with torch.enable_grad():
        for _ in range(options.iterations):
            optimizer.zero_grad()
            loss = paper_loss(delta, problem, targets, options)
            loss.backward()
            optimizer.step()
    dense = delta.detach()
    identity = torch.eye(min(d_out, d_in), dtype=dense.dtype, device=dense.device)
    return LayerResult(Factors(identity, dense) if d_out <= d_in else Factors(dense, identity))


def paper_loss(delta: Tensor, problem: LayerProblem, targets: list[Tensor], options: PaperOptions) -> Tensor:
    """The loss at `delta [d_out, d_in]`; rows of different lengths are compared over their common number of rows."""
    outputs = [recording.inputs @ delta.mT for recording in problem.recordings]
    total = delta.new_zeros(())
    for i, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        total = total + (output - target).square().sum() + options.mse * (output - target).square().mean()
        rivals = []
        for j, rival in enumerate(outputs):
            if j != i:
                common = min(len(target), len(rival))
                rivals.append((target[:common] - rival[:common]).square().sum().clamp_min(1e-12).sqrt())
        if rivals:
            total = total + (options.margin - torch.stack(rivals).min()).clamp_min(0).square()
    size = delta.square().sum().clamp_min(torch.finfo(delta.dtype).tiny).sqrt()
    return total / len(outputs) + options.lambda_delta * size
