"""What kohya's `svd_merge_lora.py` writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....model import Factors
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method


@dataclass(frozen=True)
class KohyaOptions:
    """The tool's defaults."""

    new_rank: int = option(4, "Rank of the result.", minimum=1, maximum=1024)
    clamp: float = option(
        0.99, "Quantile of the factors' entries that the others are cut to.", minimum=0.5, maximum=1.0
    )


@merge_method(
    name="kohya_svd",
    label="kohya's SVD",
    source="LoRA (arXiv 2106.09685) as merged by github.com/kohya-ss/sd-scripts, networks/svd_merge_lora.py",
    options=KohyaOptions,
    records=False,
    baseline=True,
)
def kohya_svd(problem: LayerProblem, options: KohyaOptions) -> LayerResult:
    """Adds the deltas, keeps the strongest singular vectors, and cuts outliers off the factors.

    `U S` and `V^T` of the sum at the new rank; entries of both beyond the quantile of all of them, which are those that matter
    most, are set to it, on both sides of zero.
    """
    u, singular, v = torch.linalg.svd(problem.dense_deltas().sum(0), full_matrices=False)
    rank = min(options.new_rank, len(singular))
    up, down = u[:, :rank] * singular[:rank], v[:rank]
    # not `torch.quantile`, which refuses more than 2^24 entries: a layer of the real SDXL has more
    entries = torch.cat([up.flatten(), down.flatten()]).sort().values
    place = options.clamp * (len(entries) - 1)
    below = int(place)
    above = min(below + 1, len(entries) - 1)
    bound = torch.lerp(entries[below], entries[above], place - below)
    return LayerResult(Factors(up.clamp(-bound, bound), down.clamp(-bound, bound)))
