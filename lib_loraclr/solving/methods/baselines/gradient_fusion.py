"""Mix-of-Show's gradient fusion: the same least squares by L-BFGS from the base model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....files import is_text_encoder
from ....model import Factors
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method


@dataclass(frozen=True)
class FusionOptions:
    """The authors' figures."""

    text_iterations: int = option(500, "Iterations in a layer of the text encoder.", minimum=1, maximum=100000)
    unet_iterations: int = option(50, "Iterations in a layer of the UNet.", minimum=1, maximum=100000)


@merge_method(
    name="gradient_fusion",
    label="Gradient fusion (Mix-of-Show)",
    source="Mix-of-Show, arXiv 2305.18292, eq. 5, and github.com/TencentARC/Mix-of-Show",
    options=FusionOptions,
    baseline=True,
)
def gradient_fusion(problem: LayerProblem, options: FusionOptions) -> LayerResult:
    """Minimises the error on every concept's inputs by L-BFGS, starting at the base model.

    `Σ_i ||X_i (ΔW - D_i)^T||²` over all rows alike, on the whole matrix, with strong Wolfe, 25 pairs of steps and as many
    iterations as the authors' code. It never leaves the joint column space, in which the result is given: gradients are there.
    """
    recordings = [recording for recording in problem.recordings if recording.own]
    inputs = torch.cat([recording.inputs for recording in recordings])
    targets = [problem.target(recording.active) for recording in recordings]
    wanted = torch.cat([(r.inputs @ d.down.mT) @ d.up.mT for r, d in zip(recordings, targets, strict=True)])
    iterations = options.text_iterations if is_text_encoder(problem.key) else options.unet_iterations
    found, steps = fused(inputs, wanted, iterations)
    basis = problem.column_space()
    return LayerResult(Factors(basis, basis.mT @ found), {"steps": steps})


def fused(inputs: Tensor, targets: Tensor, iterations: int) -> tuple[Tensor, int]:
    """`argmin ||X W^T - T||²` from zero, `[d_out, d_in]`, and how many iterations it took.

    Args:
        inputs: `X`, `[n, d_in]`
        targets: `T`, `[n, d_out]`
    """
    point = torch.zeros(targets.shape[1], inputs.shape[1], dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [point],
        max_iter=iterations,
        history_size=25,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
    )

    def error() -> Tensor:
        search.zero_grad()
        loss = torch.nn.functional.mse_loss(inputs @ point.mT, targets)
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(error)
    return point.detach(), search.state[point]["n_iter"]
