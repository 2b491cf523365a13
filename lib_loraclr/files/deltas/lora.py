"""LoRA and LoCon: `alpha / r * up @ down`, for linear layers and convolutions, with or without a Tucker core.

Sources: LoRA, Hu et al., arXiv 2106.09685, section 4.1; LoCon and its Tucker form, Yeh et al., arXiv 2309.14859,
section 3.1 and appendix B. rsLoRA (Kalajdzievski, arXiv 2312.03732) divides by `sqrt(r)` instead: LyCORIS writes that into
`alpha`, and `adapter_config` does so for PEFT's files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...model import Factors

KIND = "LoRA"
REQUIRED = (
    frozenset({"lora_up.weight", "lora_down.weight"}),
    frozenset({"lora_B.weight", "lora_A.weight"}),
)
OPTIONAL = frozenset({"alpha", "scale", "bias", "dora_scale", "lora_magnitude_vector", "lora_mid.weight"})
BIAS = None
NEEDS_WEIGHT = False


def rank(tensors: Mapping[str, Tensor], weight: Tensor | None = None) -> int:
    """What `alpha` is divided by."""
    return _pair(tensors)[1].shape[0]


def sides(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """`(d_out, channels in)` of the layer."""
    up, down = _pair(tensors)
    return up.shape[0], down.shape[1]


def delta(tensors: Mapping[str, Tensor], weight: Tensor | None) -> Factors:
    """Exact factors.

    Args:
        tensors: up `[d_out, r]` or `[d_out, r, 1, 1]`; down `[r, d_in]` or `[r, c_in, k, k]`; with a Tucker core
            mid `[r, r, k, k]` and down `[r, c_in, 1, 1]`
        weight: not used

    Returns:
        up `[d_out, r]`, down `[r, d_in]` with `d_in = c_in * k * k`
    """
    up, down = _pair(tensors)
    if "lora_mid.weight" in tensors:
        down = torch.einsum("mrkl,rc->mckl", tensors["lora_mid.weight"], down.flatten(1))
    up, down = up.flatten(1), down.flatten(1)
    if down.shape[0] == 0 or up.shape[1] != down.shape[0]:
        raise ValueError(f"up has rank {up.shape[1]}, down has rank {down.shape[0]}")
    return Factors(up, down)


def _pair(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    names = next(pair for pair in (("lora_up", "lora_down"), ("lora_B", "lora_A")) if f"{pair[0]}.weight" in tensors)
    return tensors[f"{names[0]}.weight"], tensors[f"{names[1]}.weight"]
