"""LoKr: a Kronecker product, `alpha / r * W1 ⊗ W2`, where each of both may be a product itself, W2 with a Tucker core.

Source: KronA, Edalati et al., arXiv 2212.10650, section 3; Yeh et al., arXiv 2309.14859, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...model import Factors

KIND = "LoKr"
REQUIRED = tuple(
    frozenset({*first, *second})
    for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
)
OPTIONAL = frozenset({"alpha", "scale", "bias", "dora_scale", "lokr_t2"})
BIAS = None
NEEDS_WEIGHT = False


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> int | None:
    """What `alpha` is divided by; None where both matrices are whole, and `alpha` means nothing."""
    for name in ("lokr_w2_b", "lokr_w1_b"):
        if name in tensors:
            return tensors[name].shape[0]
    return None


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """`(d_out, channels in)` of the layer."""
    first, second = _shape(tensors, "w1"), _shape(tensors, "w2")
    return first[0] * second[0], first[1] * second[1]


def _shape(tensors: Mapping[str, Tensor], which: str) -> tuple[int, int]:
    if f"lokr_{which}" in tensors:
        return tuple(tensors[f"lokr_{which}"].shape[:2])
    a, b = tensors[f"lokr_{which}_a"], tensors[f"lokr_{which}_b"]
    return a.shape[1 if which == "w2" and "lokr_t2" in tensors else 0], b.shape[1]


def delta(tensors: Mapping[str, Tensor], weight: Tensor | None) -> Factors:
    """Exact factors: `(A1 B1) ⊗ (A2 B2) = (A1 ⊗ A2) (B1 ⊗ B2)`; of a whole matrix one factor is the identity.

    Args:
        tensors: w1 `[a, b]` or its factors `[a, r]`, `[r, b]`; w2 `[c, d]` or `[c, d, k, k]` or its factors `[c, r]`,
            `[r, d * k * k]`; with a Tucker core t2 `[r, r, k, k]`, `[r, c]`, `[r, d]`
        weight: not used

    Returns:
        up `[a * c, r]`, down `[r, b * d * k * k]`, `r` the product of the ranks
    """
    (up1, down1), (up2, down2) = _factors(tensors, "w1"), _factors(tensors, "w2")
    # not every torch takes the Kronecker product of transposed matrices
    return Factors(torch.kron(up1.contiguous(), up2.contiguous()), torch.kron(down1, down2.contiguous()))


def _factors(tensors: Mapping[str, Tensor], which: str) -> tuple[Tensor, Tensor]:
    if f"lokr_{which}" in tensors:
        whole = tensors[f"lokr_{which}"].flatten(1)
        identity = torch.eye(min(whole.shape), dtype=whole.dtype, device=whole.device)
        return (identity, whole) if whole.shape[0] <= whole.shape[1] else (whole, identity)
    a, b = tensors[f"lokr_{which}_a"], tensors[f"lokr_{which}_b"]
    if which == "w2" and "lokr_t2" in tensors:
        return a.mT, torch.einsum("ijkl,jd->idkl", tensors["lokr_t2"], b).flatten(1)
    return a.flatten(1), b.flatten(1)
