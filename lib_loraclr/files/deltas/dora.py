"""DoRA: a delta of any kind, after which each column or row of the weight is given a length of its own.

`ΔW = (W + D) * m / ||W + D|| - W`. The shape of `dora_scale` says what it was trained on: `[1, d_in]` one length per channel
that enters (kohya, LyCORIS), `[d_out, 1]` one per channel that leaves (LyCORIS' `wd_on_out`, OneTrainer). The WebUI
(`extensions-builtin/Lora/network.py`, `apply_weight_decompose`) divides by the columns' lengths whatever the shape, and of the
second kind it makes something else than what was trained. PEFT's `lora_magnitude_vector` has one length per channel that leaves;
the WebUI does not read it.

Source: Liu et al., arXiv 2402.09353, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    Raises:
        RuntimeError: as many magnitudes as the layer has neither rows nor columns
    """
    changed = weight + delta.view_as(weight)
    name = next(name for name in MAGNITUDES if name in tensors)
    d_out, d_in = weight.shape[:2]
    if by_rows(tensors, weight.shape):
        axes, shape = list(range(1, weight.dim())), (d_out, *(1,) * (weight.dim() - 1))
    else:
        axes, shape = [0, *range(2, weight.dim())], (1, d_in, *(1,) * (weight.dim() - 2))
    magnitude = tensors[name].reshape(shape)
    length = changed.square().sum(axes, keepdim=True).sqrt()
    return (changed * (magnitude / length) - weight).flatten(1)


def by_rows(tensors: Mapping[str, Tensor], shape: Sequence[int]) -> bool:
    """Whether the magnitudes are of the channels that leave; the WebUI reads none of these as it was trained.

    Args:
        tensors: the layer's parameters, one of `MAGNITUDES` among them
        shape: of the layer's weight, `[d_out, d_in, ...]`
    """
    if "dora_scale" not in tensors:
        return True
    magnitude, (d_out, d_in) = tensors["dora_scale"], shape[:2]
    if d_out != d_in:
        return magnitude.numel() == d_out
    # of a square layer, and a list of numbers without a shape says nothing: then as the WebUI
    return magnitude.dim() > 1 and magnitude.shape[0] == d_out and d_out > 1
