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


def with_branch(module: nn.Linear | nn.Conv2d, x: Tensor, output: Tensor, delta: Factors) -> Tensor:
    """The layer's output with what the change adds to it, in the precision of the output.

    The sum is made by the multiplication itself: a device is asked once instead of twice.

    Args:
        x: the layer's input
        output: what the layer makes of it
    """
    x, up, down = (tensor.to(output.dtype) for tensor in (x, delta.up, delta.down))
    if isinstance(module, nn.Linear):
        rows, outputs = x.reshape(-1, x.shape[-1]), output.reshape(-1, output.shape[-1])
        return torch.addmm(outputs, rows @ down.mT, up.mT).view_as(output)
    if not _is_plain(x) or not _is_plain(output):
        return output + nn.functional.conv2d(_inside(module, x, down), up[:, :, None, None])
    count = len(x)
    if _keeps_positions(module):  # a convolution would turn pictures to channels last and back
        inside = torch.bmm(down.expand(count, -1, -1), x.flatten(2))
    else:
        inside = _inside(module, x, down).flatten(2)
    return torch.baddbmm(output.flatten(2), up.expand(count, -1, -1), inside).view_as(output)


def _inside(module: nn.Conv2d, x: Tensor, down: Tensor) -> Tensor:
    """By the module's own convolution, which knows its stride, its padding, and how a host that makes tiles pads."""
    return module._conv_forward(x, down.view(-1, *module.weight.shape[1:]), None)


def _is_plain(pictures: Tensor) -> bool:
    """Whether they are `[n, c, h, w]` and lie so in memory."""
    return pictures.dim() == 4 and pictures.is_contiguous()


def _keeps_positions(module: nn.Conv2d) -> bool:
    """Whether it multiplies each position by itself."""
    return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding in ((0, 0), "same", "valid")
