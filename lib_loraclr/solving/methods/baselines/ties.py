"""TIES: trim, elect signs, and average those that agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....model import whole
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method


@dataclass(frozen=True)
class TiesOptions:
    """Options of TIES; the paper recommends a density of 0.2."""

    density: float = option(0.2, "Share of each delta's entries that is kept, the largest.", minimum=0.0, maximum=1.0)
    scale: float = option(1.0, "What the merged delta is multiplied by.", minimum=0.0, maximum=10.0)


@merge_method(
    name="ties",
    label="TIES",
    source="TIES-Merging, arXiv 2306.01708",
    options=TiesOptions,
    records=False,
    baseline=True,
)
def ties(problem: LayerProblem, options: TiesOptions) -> LayerResult:
    """Keeps each delta's largest entries, and averages those whose sign wins.

    Of full rank, and blind to what goes in. A layer is trimmed by itself, as PEFT does it; the paper trims a whole model at once.
    """
    kept = [trimmed(delta, options.density) for delta in problem.dense_deltas()]
    return LayerResult(whole(options.scale * elected_mean(torch.stack(kept))))


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries, by magnitude; the others are zero."""
    count = int(density * delta.numel())
    kept = torch.zeros_like(delta).view(-1)
    largest = delta.abs().flatten().topk(count).indices
    kept[largest] = delta.flatten()[largest]
    return kept.view_as(delta)


def elected_mean(deltas: Tensor) -> Tensor:
    """Of `[N, …]`, the mean over those entries that have the sign of their sum, `[…]`; zero where none has."""
    agree = (deltas.sign() == deltas.sum(0).sign()) & (deltas != 0)
    return (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)
