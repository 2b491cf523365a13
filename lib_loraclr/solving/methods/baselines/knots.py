"""KnOTS: TIES in a basis that all deltas share."""

from __future__ import annotations

import torch

from ....model import Factors
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method
from .spectra import svd
from .ties import TiesOptions, elected_mean, trimmed


@merge_method(
    name="knots",
    label="KnOTS",
    source="KnOTS (TIES), arXiv 2410.19735",
    options=TiesOptions,
    records=False,
    baseline=True,
)
def knots(problem: LayerProblem, options: TiesOptions) -> LayerResult:
    """Writes all deltas in one basis of outputs, and merges their coordinates by TIES.

    `[D_1 … D_N] = U S [V_1 … V_N]^T`; TIES of the `S V_i^T`, as the authors' code scales them, then `U` times the result. At
    rank `Σ r_i`. The authors tune the scale on validation data (0.6 for their vision models).
    """
    deltas = problem.dense_deltas()
    basis, singular, right = svd(torch.cat(list(deltas), dim=1))
    if not len(singular):
        return LayerResult(problem.present[0].scaled(0))
    coordinates = (singular[:, None] * right).split(deltas.shape[2], dim=1)
    merged = elected_mean(torch.stack([trimmed(own, options.density) for own in coordinates]))
    return LayerResult(Factors(basis, options.scale * merged))
