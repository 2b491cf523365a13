"""ACE: the regression merge with each delta's own rows for inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....model import precise, whole
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method


@dataclass(frozen=True)
class AceOptions:
    """The authors' figures."""

    ridge: float = option(0.01, "Added to each estimated Gram's diagonal, absolute.", minimum=1e-12, maximum=10.0)
    threshold: float = option(
        0.3,
        "Variance of the log sizes, relative to their squared mean, that counts as unlike.",
        minimum=0.0,
        maximum=10.0,
    )
    kept: float = option(
        0.3, "Share of the spectrum that is made the same where deltas are unlike.", minimum=0.01, maximum=1.0
    )
    scale: float = option(1.0, "What the merged delta is multiplied by.", minimum=0.0, maximum=10.0)


@merge_method(
    name="ace",
    label="ACE",
    source="ACE-Merging, arXiv 2603.02945, and github.com/unravel-xu/ACE-Merging",
    options=AceOptions,
    records=False,
    baseline=True,
)
def ace(problem: LayerProblem, options: AceOptions) -> LayerResult:
    """Solves for the merge as RegMean does, with what the deltas themselves tell of their inputs.

    `ΔW = (Σ D_i Σ_i) (Σ Σ_i + C)^-1` with `Σ_i = D_i^T D_i + ε`, rows of `D_i` centred, and `C` the column means of their sum in
    every row. Where sizes are unlike, each `Σ_i` is divided by its trace, and the strongest singular vectors of what the
    mean misses are added with one common size. As in the authors' code, whose ridge is absolute: of LoRAs, whose deltas are
    small, it leaves little but the average.
    """
    deltas = precise(problem.dense_deltas())
    merged = _merged(deltas, options).to(problem.present[0].up)
    return LayerResult(whole(options.scale * merged))


def _merged(deltas: Tensor, options: AceOptions) -> Tensor:
    sizes = deltas.square().sum((1, 2))
    logs = (sizes + 1e-12).log()
    unlike = len(deltas) > 1 and bool(logs.var() / (logs.mean().square() + 1e-12) > options.threshold)
    centred = deltas - deltas.mean(1, keepdim=True)
    grams = centred.mT @ centred
    traces = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-12
    identity = torch.eye(deltas.shape[2], dtype=deltas.dtype, device=deltas.device)
    grams = grams / traces if unlike else grams
    ridged = grams + options.ridge * identity / (traces if unlike else 1)
    common = grams.sum(0).mean(0, keepdim=True) / (float(sizes.mean()) + 1e-12 if unlike else 1.0)
    right = (centred @ ridged).sum(0)
    merged = torch.linalg.solve((ridged.sum(0) + common).mT, right.mT).mT
    if not unlike:
        return merged
    missed = (centred @ (grams - ridged.mean(0))).sum(0)
    u, singular, v = torch.linalg.svd(missed + merged, full_matrices=False)
    count = max(1, int(len(singular) * options.kept))
    return merged + singular[:count].mean() * (u[:, :count] @ v[:count])
