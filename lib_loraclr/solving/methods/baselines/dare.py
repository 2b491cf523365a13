"""DARE: drop entries at random, and rescale the rest."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ....model import whole
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method
from .ties import elected_mean


@dataclass(frozen=True)
class DareOptions:
    """Options of DARE."""

    density: float = option(0.5, "Share of the entries that is kept, at random.", minimum=0.01, maximum=1.0)
    combine: str = option("sum", "How what is kept is put together.", choices=("sum", "ties"))
    scale: float = option(1.0, "What the merged delta is multiplied by.", minimum=0.0, maximum=10.0)
    seed: int = option(0, "Of what is dropped.", minimum=0, maximum=2**31)


@merge_method(
    name="dare",
    label="DARE",
    source="DARE, arXiv 2311.03099",
    options=DareOptions,
    records=False,
    baseline=True,
)
def dare(problem: LayerProblem, options: DareOptions) -> LayerResult:
    """Drops entries of each delta at random, makes the others as much larger, and adds them up.

    The mean over all draws is the plain sum. Of full rank; a layer's draw depends on its key, not on the others.
    """
    generator = torch.Generator().manual_seed(options.seed + zlib.crc32(problem.key.encode()))
    kept = torch.stack([dropped(delta, options.density, generator) for delta in problem.dense_deltas()])
    merged = kept.sum(0) if options.combine == "sum" else elected_mean(kept)
    return LayerResult(whole(options.scale * merged))


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry with probability `density`, divided by it; else zero."""
    drawn = torch.rand(delta.shape, generator=generator, dtype=torch.float32) < density
    return delta * drawn.to(delta.device) / density
