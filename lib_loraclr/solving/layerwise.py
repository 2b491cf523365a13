"""One layer merged by a method, and cut to the rank that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import Factors, Truncation, exact, truncate
from .layer_problem import LayerProblem
from .methods import LayerResult, Method


@dataclass(frozen=True)
class Cut:
    """How large a merged layer's rank may be.

    Attributes:
        rank: "auto", "full", or a number
        kept: the share of the layer's effect that "auto" keeps on every concept's recorded inputs
    """

    rank: str
    kept: float

    def __call__(self, delta: Factors, recordings: Sequence[Tensor] | None) -> Truncation:
        """The delta at that rank.

        Args:
            recordings: inputs on which its effect is to stay, `[n, d_in]` each; without any nothing says what could be left out
        """
        if self.rank.isdecimal():
            return truncate(delta, recordings, rank=int(self.rank))
        if self.rank == "auto" and recordings:
            return truncate(delta, recordings, share=self.kept)
        return Truncation(exact(delta), 1.0)


@dataclass(frozen=True)
class MergedLayer:
    """A merged layer.

    Attributes:
        factors: up `[d_out, r]`, down `[r, d_in]`, fp32
        notes: figures of the method's solution, for the report
        kept: the share of its effect that its rank keeps, on the recorded inputs of the concept that loses most by it
    """

    factors: Factors
    notes: Mapping[str, float]
    kept: float


def merge_layer(problem: LayerProblem, method: Method, options: Any, cut: Cut) -> MergedLayer:
    """Merge one layer; nothing here is larger than this layer's own matrices."""
    result: LayerResult = method.function(problem, options)
    truncated = cut(result.factors, problem.called_inputs() or None)
    return MergedLayer(truncated.factors.to(torch.float32), result.notes, truncated.kept)
