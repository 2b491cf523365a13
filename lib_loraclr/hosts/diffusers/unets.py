"""diffusers' UNet and VAE, filled from a single file: their topology is read off its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor, nn

from ...model import REFINER, SD1, SDXL, Family
from .recognition import UNET_PREFIX

_VAE_PREFIX = "first_stage_model."
#: of attention, where no configuration says otherwise: Stable Diffusion 1 has a number of heads, later ones a width of each
_SD1_HEADS, _HEAD_WIDTH = 8, 64
#: numbers of the picture's size that a family is told of
_SIZES = {SDXL.name: 6, REFINER.name: 5}


def unet_from_file(
    tensors: Mapping[str, Tensor], family: Family, *, heads: int | None, head_width: int | None, pooled: int
) -> UNet2DConditionModel:
    """The UNet of a single-file checkpoint.

    Args:
        heads, head_width: of attention, from the checkpoint's configuration; None: as the family has it
        pooled: numbers of the pooled text, which the family's vector begins with

    Raises:
        RuntimeError: tensors are missing, or of other shapes
    """
    shapes = {key[len(UNET_PREFIX) :]: t.shape for key, t in tensors.items() if key.startswith(UNET_PREFIX)}
    config = _unet_config(shapes)
    if heads is None and head_width is None:
        heads, head_width = (_SD1_HEADS, None) if family is SD1 else (None, _HEAD_WIDTH)
    channels = config["block_out_channels"]
    # diffusers calls the number of heads attention_head_dim
    config["attention_head_dim"] = [heads or max(1, width // head_width) for width in channels]
    if family.name in _SIZES:
        vector = shapes["label_emb.0.0.weight"][1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (vector - pooled) // _SIZES[family.name],
            "projection_class_embeddings_input_dim": vector,
        }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return _filled(unet, convert_ldm_unet_checkpoint(dict(tensors), config))


def _unet_config(shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """Topology of a UNet by the shapes of its tensors, as diffusers' configuration has it."""
    channels, depths, blocks, number = [], [], [0], 1
    while f"input_blocks.{number}.0.in_layers.2.weight" in shapes or f"input_blocks.{number}.0.op.weight" in shapes:
        if f"input_blocks.{number}.0.op.weight" in shapes:
            blocks.append(0)
        else:
            if not blocks[-1]:
                channels.append(shapes[f"input_blocks.{number}.0.out_layers.3.weight"][0])
                depths.append(_depth(shapes, f"input_blocks.{number}.1"))
            blocks[-1] += 1
        number += 1
    middle = _depth(shapes, "middle_block.1")
    context = next(shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight"))
    projections = [len(shape) for key, shape in shapes.items() if key.endswith(".proj_in.weight")]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": blocks[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        # diffusers gives the middle block the last level's depth
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), middle],
        "cross_attention_dim": context,
        "use_linear_projection": projections[0] == 2,
    }


def _depth(shapes: Mapping[str, torch.Size], block: str) -> int:
    """How many transformer blocks there are in a block; 0 where it has no attention."""
    depth = 0
    while f"{block}.transformer_blocks.{depth}.attn1.to_q.weight" in shapes:
        depth += 1
    return depth


def vae_from_file(tensors: Mapping[str, Tensor], *, scaling_factor: float) -> AutoencoderKL:
    """The VAE of a single-file checkpoint.

    Raises:
        RuntimeError: tensors are missing, or of other shapes
    """
    shapes = {key[len(_VAE_PREFIX) :]: t.shape for key, t in tensors.items() if key.startswith(_VAE_PREFIX)}
    levels = 0
    while f"decoder.up.{levels}.block.0.conv2.weight" in shapes:
        levels += 1
    blocks = 0
    while f"decoder.up.0.block.{blocks}.conv2.weight" in shapes:
        blocks += 1
    config = {
        "block_out_channels": [shapes[f"decoder.up.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        # the decoder has one more
        "layers_per_block": blocks - 1,
        "latent_channels": shapes["post_quant_conv.weight"][1],
        "scaling_factor": scaling_factor,
    }
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    only_vae = {key: tensor for key, tensor in tensors.items() if key.startswith(_VAE_PREFIX)}
    return _filled(vae, convert_ldm_vae_checkpoint(only_vae, config))


def _filled(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    model.load_state_dict(weights, assign=True)
    return model
