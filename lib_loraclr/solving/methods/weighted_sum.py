"""The plain sum: what several `<lora:…>` tags in one prompt do."""

from __future__ import annotations

from ...model import concatenate
from ..layer_problem import LayerProblem
from . import LayerResult, NoOptions, merge_method


@merge_method(
    name="weighted_sum",
    label="Weighted sum (all tags)",
    source="LoRA, arXiv 2106.09685",
    records=False,
)
def weighted_sum(problem: LayerProblem, options: NoOptions) -> LayerResult:
    """Adds the deltas, exactly as several tags in one prompt do.

    `ΔW = Σ_i D_i`, at rank `Σ r_i`. Fails where concepts change the same directions: each sees the others' changes
    on its own inputs. Costs nothing.
    """
    return LayerResult(concatenate(problem.present))
