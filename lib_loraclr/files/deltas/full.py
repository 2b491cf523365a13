"""Full: the delta itself, and that of the layer's bias."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

KIND = "full"
REQUIRED = (frozenset({"diff"}),)
OPTIONAL = frozenset({"diff_b", "alpha", "scale", "bias", "dora_scale"})
BIAS = "diff_b"
NEEDS_WEIGHT = False


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
    """It has none."""


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, int | None]:
    """`(d_out, channels in)` of the layer; a norm's weight has no inputs."""
    shape = tensors["diff"].shape
    return shape[0], shape[1] if len(shape) > 1 else None


def delta(tensors: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    """`[d_out, d_in]`, `[d_out, c_in, k, k]`, or a norm's `[d]`."""
    return tensors["diff"]
