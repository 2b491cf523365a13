"""Models and LoRAs of the real shapes with random weights: what they take is real, what they draw is noise."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig

from lib_loraclr import model
from lib_loraclr.hosts.diffusers.host import DiffusersHost, Parts
from lib_loraclr.hosts.diffusers.recognition import Kind
from lib_loraclr.hosts.diffusers.text_encoders import TextEncoder, bundled_tokenizer
from lib_loraclr.model import Host

from .shapes import ADAPTED, Architecture

#: a LoRA's change beside the weight it changes; real ones have a few percent
STRENGTH = 0.03
#: of a VAE that is never used, with the real one's factor of 8
_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "latent_channels": 4}
_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def random_host(architecture: Architecture, *, device: str, dtype: torch.dtype, seed: int = 0) -> DiffusersHost:
    """A checkpoint of that architecture, initialised as for training."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made at once as it will be: twice of it may not fit
    try:
        with torch.device(device):
            unet = UNet2DConditionModel(**architecture.unet)
            vae = AutoencoderKL(**_VAE, **_BLOCKS)
            encoders = []
            for prefix, (kind, sizes) in architecture.text_encoders.items():
                projection = architecture.added[0] if architecture.added else sizes["hidden_size"]
                text = kind(CLIPTextConfig(**sizes, projection_dim=projection))
                tokenizer = bundled_tokenizer(open_clip=prefix == "lora_te2_")
                encoders.append(TextEncoder(text, tokenizer, penultimate=architecture.added is not None))
    finally:
        torch.set_default_dtype(before)
    for module in (unet, vae, *(encoder.model for encoder in encoders)):
        nn.Module.to(module, device=device, dtype=dtype)  # buffers are made in fp32
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    kind = Kind(architecture.family, inpainting=False)
    latents = architecture.family.native_size // 8
    return DiffusersHost(architecture.name, Parts(kind, unet, tuple(encoders), vae, schedule, latents))


def random_lora(host: Host, path: Path, *, rank: int, seed: int) -> Path:
    """A LoRA file with a random delta for every layer that trainers adapt, of `STRENGTH` times its weight's norm."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for key, layer in adapted(host).items():
        d_out, d_in = layer.shape
        tail = tuple(layer.weight.shape[2:])
        up = torch.randn(d_out, rank, generator=generator)
        down = torch.randn(rank, d_in, generator=generator)
        size = STRENGTH * float(layer.weight.float().norm()) / float(model.Factors(up, down).norm())
        tensors[f"{key}.lora_up.weight"] = (up * size).half().reshape(d_out, rank, *(1 for _ in tail))
        tensors[f"{key}.lora_down.weight"] = down.half().reshape(rank, -1, *tail)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)
    return path


def adapted(host: Host) -> dict[str, model.Layer]:
    """The layers that LoRA trainers adapt by default."""
    return {
        key: layer
        for key, layer in host.layers().items()
        if not layer.is_vector and any(part in key for part in ADAPTED)
    }
