"""A low-rank change beside a layer instead of in its weight: `x W^T + (x down^T) up^T`.

With gradients, a weight `W + up down` is made for every call, kept for the backward pass, and has a dense gradient: three
matrices of the layer's own size. A branch beside the layer needs none of them, but costs more where the rank is high beside
the layer's width and many rows go in; so it is chosen call by call, by counting operations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .low_rank import Factors


def has_branches(module: nn.Module) -> bool:
    """Whether a branch beside a module is what a change of its weight would be."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def is_cheaper(module: nn.Linear | nn.Conv2d, x: Tensor, delta: Factors) -> bool:
    """Whether a branch takes fewer multiplications than a changed weight, backward pass included.

    With `n` rows: a changed weight takes `r d_out d_in` to make, twice that for the gradients of its factors, and
    `n d_out d_in` for its own; a branch takes three times `n r (d_out + d_in)`.
    """
    d_out, d_in = delta.shape
    rows = _rows(module, x)
    changed = (3 * delta.rank + rows) * d_out * d_in
    return 3 * rows * delta.rank * (d_out + d_in) < changed


def _rows(module: nn.Linear | nn.Conv2d, x: Tensor) -> int:
    """How many rows the layer multiplies with its weight: one per token, or per position of a convolution's output."""
    if isinstance(module, nn.Linear):
        return x.numel() // x.shape[-1]
    return x.numel() // x.shape[-3] // math.prod(module.stride)


def branch(module: nn.Linear | nn.Conv2d, x: Tensor, delta: Factors, dtype: torch.dtype) -> Tensor:
    """What the change adds to the layer's output.

    Args:
        x: the layer's input
        dtype: of the layer's output, in which the branch is computed
    """
    x, up, down = x.to(dtype), delta.up.to(dtype), delta.down.to(dtype)
    if isinstance(module, nn.Linear):
        return (x @ down.mT) @ up.mT
    # the module's own, which knows its stride, its padding, and how a host that makes tiles pads
    inside = module._conv_forward(x, down.view(-1, *module.weight.shape[1:]), None)
    return nn.functional.conv2d(inside, up[:, :, None, None])
