"""LoHa: the Hadamard product of two low-rank matrices, `alpha / r * (A1 @ B1) ∘ (A2 @ B2)`, with or without Tucker cores.

Source: FedPara, Hyeon-Woo et al., arXiv 2108.06098, proposition 1; Yeh et al., arXiv 2309.14859, appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...model import Factors

KIND = "LoHa"
REQUIRED = (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),)
OPTIONAL = frozenset({"alpha", "scale", "bias", "dora_scale", "hada_t1", "hada_t2"})
BIAS = None
NEEDS_WEIGHT = False


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> int:
    """What `alpha` is divided by."""
    return tensors["hada_w1_b"].shape[0]


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """`(d_out, channels in)` of the layer."""
    return tensors["hada_w1_a"].shape[1 if "hada_t1" in tensors else 0], tensors["hada_w1_b"].shape[1]


def delta(tensors: Mapping[str, Tensor], weight: Tensor | None) -> Factors:
    """Exact factors of rank `r * r`.

    The Hadamard product of `A1 B1` and `A2 B2` is the product of the row-wise Kronecker product of `A1` and `A2` with the
    column-wise one of `B1` and `B2` (Slyusar's face-splitting product).

    Args:
        tensors: a `[d_out, r]`, b `[r, d_in]` or `[r, c_in, k, k]`; with a Tucker core t `[r, r, k, k]`, a `[r, d_out]`,
            b `[r, c_in]`
        weight: not used
    """
    (up1, down1), (up2, down2) = (_pair(tensors, which) for which in "12")
    up = torch.einsum("oi,oj->oij", up1, up2).flatten(1)
    down = torch.einsum("ix,jx->ijx", down1, down2).flatten(0, 1)
    return Factors(up, down)


def _pair(tensors: Mapping[str, Tensor], which: str) -> tuple[Tensor, Tensor]:
    a, b, core = (tensors.get(f"hada_{name}") for name in (f"w{which}_a", f"w{which}_b", f"t{which}"))
    if core is not None:
        return a.mT, torch.einsum("ijkl,jc->ickl", core, b).flatten(1)
    return a.flatten(1), b.flatten(1)
