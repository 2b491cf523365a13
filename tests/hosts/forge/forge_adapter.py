"""What the tests of Forge's host ask of the stand-in's checkpoints, and deltas for them."""

from __future__ import annotations

import torch
from webui_stand_in_model import WIDTH

from lib_loraclr.hosts import forge
from lib_loraclr.model.low_rank import Factors

#: keys of the stand-in's layers
Q_SD1 = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
UNET_SD1 = "lora_unet_down_blocks_0_attentions_0_attn1_to_q"


def delta(*, trained: bool = False) -> Factors:
    factors = Factors(torch.randn(WIDTH, 2), torch.randn(2, WIDTH))
    return Factors(factors.up.requires_grad_(), factors.down.requires_grad_()) if trained else factors


def predict(host: forge.ForgeHost, *prompts: str) -> torch.Tensor:
    x = torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8).repeat(len(prompts), 1, 1, 1)
    return host.denoise(x, torch.full((len(prompts),), 500), host.encode(prompts))
