"""The mean of the deltas."""

from __future__ import annotations

from ...model import concatenate
from ..layer_problem import LayerProblem
from . import LayerResult, NoOptions, merge_method


@merge_method(
    name="average",
    label="Average",
    source="Model soups, arXiv 2203.05482",
    records=False,
)
def average(problem: LayerProblem, options: NoOptions) -> LayerResult:
    """Averages the deltas: less interference than the sum, and less of every concept.

    `ΔW = 1/N Σ_i D_i`, at rank `Σ r_i`; a concept that does not change a layer counts as zero there. Costs nothing.
    """
    return LayerResult(concatenate(problem.present).scaled(1 / len(problem.deltas)))
