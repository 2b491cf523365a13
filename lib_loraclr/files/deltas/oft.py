"""OFT and BOFT: the weight turned by an orthogonal matrix that is block-diagonal, `ΔW = R W - W`.

`R` comes from a skew-symmetric `Q` by Cayley's transform, `R = (I + Q) (I - Q)^-1`; early LyCORIS files hold `R` itself
(`oft_diag`). The norm of `Q` is at most `alpha * d_out` where `alpha` is given. BOFT multiplies several such matrices,
each on a permuted order of the rows (butterfly).

Sources: Qiu et al., arXiv 2306.07280, section 4; BOFT, Liu et al., arXiv 2311.06243, section 4. Which side of a block is
transposed, and how rows are permuted, is as the WebUI's `extensions-builtin/Lora/network_oft.py` has it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

KIND = "OFT"
REQUIRED = (frozenset({"oft_blocks"}), frozenset({"oft_diag"}))
OPTIONAL = frozenset({"alpha", "rescale", "bias", "dora_scale"})
BIAS = None
NEEDS_WEIGHT = True

#: keeps a block of zeros from being divided by its norm
_TINY = 1e-8


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
    """None that `alpha` would be divided by: it bounds the turn instead."""


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, None]:
    """`(d_out, channels in)` of the layer; nothing is known of what enters."""
    blocks = tensors["oft_blocks"] if "oft_blocks" in tensors else tensors["oft_diag"]
    return blocks.shape[-3] * blocks.shape[-1], None


def delta(tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """`[d_out, d_in]` or `[d_out, c_in, k, k]`, nearly of full rank.

    Args:
        tensors: oft_blocks `[d_out / b, b, b]`, or for BOFT `[m, d_out / b, b, b]`; or oft_diag `[d_out / b, b, b]`; alpha
            `[]`; rescale `[d_out, 1, ...]`
        weight: the layer's own
    """
    flat = weight.flatten(1)
    if "oft_diag" in tensors and "oft_blocks" not in tensors:
        turned = _turn(tensors["oft_diag"].mT, flat)
    else:
        blocks = _cayley(tensors["oft_blocks"], tensors.get("alpha"), len(flat))
        turned = _butterfly(blocks, flat) if blocks.dim() == 4 else _turn(blocks.mT, flat)
    if "rescale" in tensors:
        turned = tensors["rescale"].reshape(-1, 1) * turned
    return (turned - flat).view_as(weight)


def _cayley(blocks: Tensor, alpha: Tensor | None, d_out: int) -> Tensor:
    skew = blocks - blocks.mT
    if alpha is not None and float(alpha) != 0:
        norm = skew.norm()
        skew = skew * ((norm.clamp(max=float(alpha) * d_out) + _TINY) / (norm + _TINY))
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return torch.matmul(identity + skew, torch.linalg.inv(identity - skew))


def _turn(blocks: Tensor, flat: Tensor) -> Tensor:
    """Rows `[d_out, d_in]` turned block by block, `blocks [d_out / b, b, b]`."""
    count, size, _ = blocks.shape
    return torch.bmm(blocks, flat.view(count, size, -1)).view_as(flat)


def _butterfly(blocks: Tensor, flat: Tensor) -> Tensor:
    rows = torch.arange(len(flat), device=flat.device)
    for level, turns in enumerate(blocks):
        half = 2**level * (turns.shape[-1] // 2)
        # in each group of 2 * half rows, those with even and odd numbers change places with the two halves
        order = rows.view(-1, 2, half).mT.reshape(-1)
        turned = torch.empty_like(flat)
        turned[order] = _turn(turns, flat[order])
        flat = turned
    return flat
