"""GLoRA: `ΔW = B2 B1 + W A2 A1`, as the WebUI's `network_glora.py` names them, without `alpha`.

LyCORIS since version 2 names the factors of both products the other way round and scales by `alpha / r`; the WebUI cannot read
those. They are told apart by their shapes, and by the layer's where the factors fit either way.

Source: Chavan et al., arXiv 2306.07967, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...model import Factors

KIND = "GLoRA"
REQUIRED = (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}),)
OPTIONAL = frozenset({"scale", "bias", "dora_scale"})
BIAS = None
NEEDS_WEIGHT = True


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> int | None:
    """What `alpha` is divided by; None in the older form, where it means nothing. A square layer's form may need its weight."""
    return None if _is_older(tensors, weight) else tensors["a2.weight"].shape[0]


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """`(d_out, channels in)` of the layer."""
    (up, down), _ = _pairs(tensors, _is_older(tensors))
    return up.shape[0], down.shape[1]


def delta(tensors: Mapping[str, Tensor], weight: Tensor) -> Factors:
    """Exact factors of rank `2 r`.

    Args:
        tensors: b2 `[d_out, r]`, b1 `[r, d_in]` or `[r, c_in, k, k]`, a2 `[c_in, r]`, a1 `[r, c_in]`; or with 1 and 2 exchanged
        weight: the layer's own, `[d_out, d_in]` or `[d_out, c_in, k, k]`
    """
    (up, down), (a_up, a_down) = _pairs(tensors, _is_older(tensors, weight))
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


def _is_older(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> bool:
    """Whether the factors are named as in the older form.

    Args:
        weight: the layer's own; without it the factors of a layer with `d_out = c_in` fit either way
    """
    older, newer = (_fit(*_pairs(tensors, of_older), weight) for of_older in (True, False))
    if older != newer:
        return older
    # the rank is nearly always less than the channels
    return tensors["a1.weight"].shape[0] < tensors["a1.weight"].shape[1]


def _fit(b: tuple[Tensor, Tensor], a: tuple[Tensor, Tensor], weight: Tensor | None) -> bool:
    """Whether the factors fit each other, `[d_out, r] [r, c_in]` and `[c_in, r] [r, c_in]`, and the layer."""
    (up, down), (a_up, a_down) = b, a
    rank, channels = a_down.shape[0], a_down.shape[1]
    if not (up.shape[1] == down.shape[0] == a_up.shape[1] == rank and down.shape[1] == a_up.shape[0] == channels):
        return False
    return weight is None or weight.shape[:2] == (up.shape[0], channels)


def _pairs(tensors: Mapping[str, Tensor], older: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    first, second = ("2", "1") if older else ("1", "2")
    b, a = ((tensors[f"{name}{first}.weight"], tensors[f"{name}{second}.weight"]) for name in "ba")
    return b, a
