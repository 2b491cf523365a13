"""RegMean: the closed form with Grams pulled towards their diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....model import Factors, concatenate, precise
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method


@dataclass(frozen=True)
class RegMeanOptions:
    """Options of RegMean."""

    off_diagonal: float = option(
        0.9, "What the Grams' entries off the diagonal are multiplied by.", minimum=0.0, maximum=1.0
    )


@merge_method(
    name="regmean",
    label="RegMean",
    source="RegMean, arXiv 2212.09849, eq. 2 and section 3.3",
    options=RegMeanOptions,
    baseline=True,
)
def regmean(problem: LayerProblem, options: RegMeanOptions) -> LayerResult:
    """Solves for what does on every concept's inputs what its own LoRA does, Grams pulled to their diagonal.

    `ΔW = (Σ_i D_i G_i) (Σ_i G_i)^-1`, `G_i = α X_i^T X_i / n_i + (1 - α) diag`. Unlike `ridge` it knows no rows without
    trigger words, no unit of a concept's own, and no prior.
    """
    recordings = [recording for recording in problem.recordings if recording.own]
    grams = [shrunk_gram(recording.inputs, options.off_diagonal) for recording in recordings]
    total = sum(grams[1:], grams[0])
    # a column that no input reaches has nothing on its diagonal either
    floor = len(total) * torch.finfo(problem.present[0].up.dtype).eps * total.diagonal().mean()
    total.diagonal().add_(floor.clamp_min(torch.finfo(total.dtype).tiny))
    parts = []
    for recording, gram in zip(recordings, grams, strict=True):
        if all(problem.deltas[i] is None for i in recording.active):
            continue
        target = problem.target(recording.active)
        down = torch.linalg.solve(total, gram @ precise(target.down).mT).mT
        parts.append(Factors(target.up, down.to(target.down)))
    return LayerResult(concatenate(parts))


def shrunk_gram(inputs: Tensor, off_diagonal: float) -> Tensor:
    """`α X^T X / n + (1 - α) diag(X^T X / n)`, `[d_in, d_in]`, in double precision."""
    inputs = precise(inputs)
    gram = inputs.mT @ inputs / max(1, len(inputs))
    return off_diagonal * gram + (1 - off_diagonal) * gram.diagonal().diag()
