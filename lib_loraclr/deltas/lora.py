"""LoRA and LoCon: `alpha / r * up @ down`, for linear layers and convolutions, with or without a Tucker core.

Sources: LoRA, Hu et al., arXiv 2106.09685, section 4.1; LoCon and its Tucker form, Yeh et al., arXiv 2309.14859,
section 3.1 and appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..low_rank import Factors

KIND = "LoRA"
REQUIRED = (
    frozenset({"lora_up.weight", "lora_down.weight"}),
    frozenset({"lora_B.weight", "lora_A.weight"}),
)
OPTIONAL = frozenset({"alpha", "scale", "lora_mid.weight"})


def factors(tensors: Mapping[str, Tensor]) -> Factors:
    """Exact factors, the scale inside `up`.

    Args:
        tensors: up `[d_out, r]` or `[d_out, r, 1, 1]`; down `[r, d_in]` or `[r, c_in, k, k]`; with a Tucker core
            mid `[r, r, k, k]` and down `[r, c_in, 1, 1]`; alpha `[]`, absent meaning `r`; scale `[]`, which replaces `alpha / r`
            (the WebUI's `NetworkModule.calc_scale`)

    Returns:
        up `[d_out, r]`, down `[r, d_in]` with `d_in = c_in * k * k`
    """
    up = tensors["lora_up.weight"] if "lora_up.weight" in tensors else tensors["lora_B.weight"]
    down = tensors["lora_down.weight"] if "lora_down.weight" in tensors else tensors["lora_A.weight"]
    rank = down.shape[0]
    if "lora_mid.weight" in tensors:
        down = torch.einsum("mrkl,rc->mckl", tensors["lora_mid.weight"], down.flatten(1))
    up, down = up.flatten(1), down.flatten(1)
    if rank == 0 or up.shape[1] != down.shape[0]:
        raise ValueError(f"up has rank {up.shape[1]}, down has rank {down.shape[0]}")
    scale = float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0
    scale = float(tensors["scale"]) if "scale" in tensors else scale
    return Factors(up * scale, down)
