"""What SuperMerger's default merge of LoRAs writes."""

from __future__ import annotations

from torch import Tensor

from ....model import Factors
from ...layer_problem import LayerProblem
from .. import LayerResult, NoOptions, merge_method


@merge_method(
    name="supermerger",
    label="SuperMerger's default",
    source="LoRA (arXiv 2106.09685) as merged by github.com/hako-mikan/sd-webui-supermerger, default settings",
    records=False,
    baseline=True,
)
def supermerger(problem: LayerProblem, options: NoOptions) -> LayerResult:
    """Adds the factors instead of their products.

    `(Σ_i B_i) (Σ_i A_i)`, so that every concept's inputs reach every other's outputs; kohya's `merge_lora.py` does the same. The
    tools refuse unequal ranks; here the smaller ones are filled with zeros. They put the root of `alpha / r` on both factors,
    where files are read with all of it in `up`: the same for alphas in the same proportion to their ranks.
    """
    rank = max(delta.rank for delta in problem.present)
    ups = [_wider(delta.up, rank) for delta in problem.present]
    downs = [_wider(delta.down.mT, rank).mT for delta in problem.present]
    return LayerResult(Factors(sum(ups[1:], ups[0]), sum(downs[1:], downs[0])))


def _wider(matrix: Tensor, columns: int) -> Tensor:
    """`[d, r]` -> `[d, columns]`, with zeros on the right."""
    wide = matrix.new_zeros(len(matrix), columns)
    wide[:, : matrix.shape[1]] = matrix
    return wide
