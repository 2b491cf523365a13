"""Core Space: merge small matrices in the bases that all factors share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....model import Factors, column_basis, orthonormal_basis
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method
from .spectra import isotropic, singular_vector_merge


@dataclass(frozen=True)
class CoreSpaceOptions:
    """Options of the merge in core space; the paper's best is TSV with isotropic scaling."""

    merge: str = option("tsv", "How the core matrices are merged.", choices=("tsv", "sum"))
    isotropic: bool = option(True, "Make all singular values of the merged core the same.")
    scale: float = option(1.0, "What the merged delta is multiplied by.", minimum=0.0, maximum=10.0)


@merge_method(
    name="core_space",
    label="Core Space (TSV, isotropic)",
    source="Core Space, arXiv 2509.17786, with TSV-M, arXiv 2412.00081",
    options=CoreSpaceOptions,
    records=False,
    baseline=True,
)
def core_space(problem: LayerProblem, options: CoreSpaceOptions) -> LayerResult:
    """Writes all deltas in bases of their common outputs and inputs, and merges the small matrices between.

    `D_i = U M_i V^T` exactly, with `U = orth([B_1 … B_N])` and `V = orth([A_1^T … A_N^T])`; the `M_i`, of size `Σ r_i`, are
    merged by their singular vectors. The authors tune the scale on validation data.
    """
    left = problem.column_space()
    right = orthonormal_basis(torch.cat([column_basis(Factors(d.down.mT, d.up.mT)) for d in problem.present], dim=1))
    nothing = left.new_zeros(left.shape[1], right.shape[1])
    cores = [nothing if d is None else (left.mT @ d.up) @ (d.down @ right) for d in problem.deltas]
    merged = singular_vector_merge(cores) if options.merge == "tsv" else sum(cores, nothing)
    merged = isotropic(merged).dense() if options.isotropic else merged
    return LayerResult(Factors(left, options.scale * merged @ right.mT))
