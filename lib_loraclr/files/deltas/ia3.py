"""(IA)³: the weight's columns (what enters) or rows (what leaves) scaled, `ΔW = W diag(w)` or `diag(w) W`.

Source: Liu et al., arXiv 2205.05638, section 3.3; `alpha` plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

KIND = "(IA)3"
REQUIRED = (frozenset({"weight", "on_input"}),)
OPTIONAL = frozenset({"alpha", "scale", "bias", "dora_scale"})
BIAS = None
NEEDS_WEIGHT = True


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
    """It has none."""


def sides(tensors: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """`(d_out, channels in)` of the layer: the one that is scaled."""
    width = tensors["weight"].numel()
    return (None, width) if tensors["on_input"].item() else (width, None)


def delta(tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """`[d_out, d_in]` or `[d_out, c_in, k, k]`, nearly of full rank.

    Args:
        tensors: weight `[c_in]` or `[d_out]`, also `[1, c, 1, 1]`; on_input `[]`, whether it scales what enters
        weight: the layer's own
    """
    axis = 1 if tensors["on_input"].item() else 0
    shape = [1] * weight.dim()
    shape[axis] = weight.shape[axis]
    return weight * tensors["weight"].reshape(shape)
