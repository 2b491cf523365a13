"""DoRA: a delta of any kind, after which each column of the weight is given a length of its own.

`ΔW = (W + D) * m / ||W + D|| - W`. kohya's and LyCORIS' `dora_scale` is read as the WebUI reads it
(`extensions-builtin/Lora/network.py`, `apply_weight_decompose`): one length per channel that enters, whatever axis it was
trained on. PEFT's `lora_magnitude_vector` has one per channel that leaves; the WebUI does not read it.

Source: Liu et al., arXiv 2402.09353, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MAGNITUDES = ("dora_scale", "lora_magnitude_vector")


def decomposed(delta: Tensor, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """The delta with the magnitudes in `tensors`.

    Args:
        delta: `[d_out, d_in]`
        tensors: the layer's parameters, one of `MAGNITUDES` among them
        weight: the layer's own, `[d_out, d_in]` or `[d_out, c_in, k, k]`

    Returns:
        `[d_out, d_in]`
    """
    changed = weight + delta.view_as(weight)
    if "dora_scale" in tensors:
        # LyCORIS can also train one length per row: the WebUI divides by the columns' all the same, and so does this
        axes, magnitude = [0, *range(2, weight.dim())], tensors["dora_scale"]
    else:
        axes = list(range(1, weight.dim()))
        magnitude = tensors["lora_magnitude_vector"].reshape(-1, *(1,) * (weight.dim() - 1))
    length = changed.square().sum(axes, keepdim=True).sqrt()
    return (changed * (magnitude / length) - weight).flatten(1)
