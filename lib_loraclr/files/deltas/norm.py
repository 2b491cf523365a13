"""Norm: the deltas of the weight and bias of a group or layer norm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

KIND = "norm"
REQUIRED = (frozenset({"w_norm", "b_norm"}),)
OPTIONAL = frozenset({"alpha", "scale"})
BIAS = "b_norm"
NEEDS_WEIGHT = False


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
    """It has none."""


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, None]:
    """`(channels, none)`: a norm's weight has no inputs."""
    return tensors["w_norm"].numel(), None


def delta(tensors: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    """`[d]`; files may have it as `[1, d]`, which the WebUI adds as well."""
    return tensors["w_norm"].flatten()
