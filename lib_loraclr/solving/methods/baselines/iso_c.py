"""Iso-C: the sum with all its singular values made the same."""

from __future__ import annotations

from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method
from .spectra import ScaleOptions, isotropic


@merge_method(
    name="iso_c",
    label="Iso-C",
    source="Iso-C, arXiv 2502.04959",
    options=ScaleOptions,
    records=False,
    baseline=True,
)
def iso_c(problem: LayerProblem, options: ScaleOptions) -> LayerResult:
    """Adds the deltas, and makes the singular values of the sum the same.

    Of rank `Σ r_i`: a direction that no delta has gets nothing, where the authors, whose deltas have full rank, have none. The
    scale is tuned on validation data there.
    """
    return LayerResult(isotropic(problem.dense_deltas().sum(0)).scaled(options.scale))
