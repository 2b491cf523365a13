"""GLoRA: `ΔW = B2 B1 + W A2 A1`, as the WebUI's `network_glora.py` names them, without `alpha`.

LyCORIS since version 2 names the factors of both products the other way round and scales by `alpha / r`; the WebUI cannot read
those. They are told apart by their shapes.

Source: Chavan et al., arXiv 2306.07967, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..low_rank import Factors

KIND = "GLoRA"
REQUIRED = (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}),)
OPTIONAL = frozenset({"scale", "bias", "dora_scale"})
BIAS = None
NEEDS_WEIGHT = True


def rank(tensors: Mapping[str, Tensor]) -> int | None:
    """What `alpha` is divided by; None in the older form, where it means nothing."""
    return None if _is_older(tensors) else tensors["a2.weight"].shape[0]


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """`(d_out, channels in)` of the layer."""
    (up, down), _ = _pairs(tensors)
    return up.shape[0], down.shape[1]


def delta(tensors: Mapping[str, Tensor], weight: Tensor) -> Factors:
    """Exact factors of rank `2 r`.

    Args:
        tensors: b2 `[d_out, r]`, b1 `[r, d_in]` or `[r, c_in, k, k]`, a2 `[c_in, r]`, a1 `[r, c_in]`; or with 1 and 2 exchanged
        weight: the layer's own, `[d_out, d_in]` or `[d_out, c_in, k, k]`
    """
    (up, down), (a_up, a_down) = _pairs(tensors)
    through = torch.tensordot(weight, a_up.flatten(1), dims=([1], [0]))  # [d_out, k, k, r]
    a_down = a_down.flatten(1)
    if weight.dim() == 2:
        return Factors(torch.cat([up, through], dim=1), torch.cat([down, a_down]))
    # each entry of the kernel has its own rows `W[:, :, k, l] A`, and `A` acts on the channels of that entry alone
    size = weight[0, 0].numel()
    spread = torch.einsum("rc,pq->prcq", a_down, torch.eye(size, dtype=weight.dtype, device=weight.device))
    return Factors(
        torch.cat([up.flatten(1), through.flatten(1)], dim=1),
        torch.cat([down.flatten(1), spread.flatten(2).flatten(0, 1)]),
    )


def _is_older(tensors: Mapping[str, Tensor]) -> bool:
    """By which sides of both products are the rank; where the layer is square they all fit, and the rank is the smaller."""
    a1, a2, b1, b2 = (tensors[f"{name}.weight"].shape for name in ("a1", "a2", "b1", "b2"))
    older, newer = (a1[0], a2[1]) == (b1[0], b2[1]), (a1[1], a2[0]) == (b1[1], b2[0])
    return older if older != newer else a1[0] < a1[1]


def _pairs(tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    first, second = ("2", "1") if _is_older(tensors) else ("1", "2")
    b, a = ((tensors[f"{name}{first}.weight"], tensors[f"{name}{second}.weight"]) for name in "ba")
    return b, a
