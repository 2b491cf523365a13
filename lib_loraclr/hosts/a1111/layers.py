"""The layers of the checkpoint that the WebUI has loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LoraclrError
from ...model import (
    INPAINTING_CHANNELS,
    LATENT_CHANNELS,
    OTHER_CHANNELS,
    REFINER,
    SD1,
    SD2,
    SDXL,
    Family,
    Layer,
    adaptable_layers,
    always_one,
)
from .. import webui


def family_of(model: nn.Module) -> Family:
    """The family of a loaded checkpoint.

    Raises:
        LoraclrError: LoRAs of its kind cannot be merged
    """
    title = model.sd_checkpoint_info.title
    if getattr(model, "is_sd3", False):
        raise LoraclrError(
            f"{title} is a Stable Diffusion 3 checkpoint. It denoises along straight paths (rectified flow), without the noise "
            "schedule that a merge is recorded on: load a 1.x, 2.x or XL one."
        )
    channels = model.model.diffusion_model.in_channels
    if getattr(model.model, "conditioning_key", "crossattn") == "crossattn-adm":
        raise LoraclrError(
            f"{title} is Stable unCLIP: load a checkpoint that only reads prompts, or one for inpainting."
        )
    if channels not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        name = OTHER_CHANNELS.get(channels, f"a model that reads {channels} channels")
        raise LoraclrError(f"{title} is {name}: load a checkpoint that only reads prompts, or one for inpainting.")
    if model.is_sdxl:
        return SDXL if len(_text_embedders(model)) == 2 else REFINER
    return SD2 if model.is_sd2 else SD1


def is_inpainting(model: nn.Module) -> bool:
    """Whether the UNet also reads a mask and what it leaves of a picture."""
    return model.model.diffusion_model.in_channels == INPAINTING_CHANNELS


def _text_embedders(model: nn.Module) -> list[nn.Module]:
    return [embedder for embedder in model.conditioner.embedders if hasattr(embedder, "wrapped")]


def model_layers(model: nn.Module, family: Family) -> tuple[dict[str, Layer], dict[str, str]]:
    """Every linear layer, convolution, norm and bias of text encoder(s) and UNet that a LoRA file can name.

    Returns:
        layer key -> layer, and other names that files have for it -> layer key
    """
    networks = webui.lora_extension()
    if not hasattr(model, "network_layer_mapping"):
        networks.assign_network_names_to_compvis_modules(model)
    layers: dict[str, Layer] = {}
    aliases: dict[str, str] = {}
    for name, part, layer in _named_layers(model.network_layer_mapping):
        names = webui.names_of(name, family, networks.convert_diffusers_name_to_compvis)
        if names is not None:
            layers[names.key + part] = layer
            aliases.update((other, names.key) for other in names.others)
    return layers, aliases


def _named_layers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Layer]]:
    """The WebUI's name of each module, which parameter of it, and the layer.

    The projections that `nn.MultiheadAttention` packs come one by one. Files have no name for OpenCLIP's norms.
    """
    packed = {id(module.out_proj) for module in modules.values() if isinstance(module, nn.MultiheadAttention)}
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            width = module.embed_dim
            for place, letter in enumerate("qkv"):
                rows = slice(place * width, (place + 1) * width)
                layer = Layer(module, module, "in_proj_weight", rows, _projected(place), cast=_cast)
                yield f"{name}_{letter}_proj", "", layer
            yield f"{name}_out_proj", "", Layer(module, module.out_proj, observed=attended, cast=_cast)
            if module.out_proj.bias is not None:
                bias = Layer(module, module.out_proj, "bias", observed=always_one, cast=_cast)
                yield f"{name}_out_proj", ".bias", bias
        elif id(module) not in packed and not re.search(r"resblocks_\d+_ln_", name):
            for part, layer in adaptable_layers(module).items():
                yield name, part, layer


def _cast() -> torch.dtype | None:
    """fp32 for packed attention where the WebUI casts by hand instead of by autocast, as on Apple's and Intel's chips.

    `devices.manual_cast` casts parameters, and knows nothing of what stands in their place.
    """
    return torch.float32 if hasattr(nn.MultiheadAttention, "org_forward") else None


def _projected(place: int):
    name = ("query", "key", "value")[place]

    def observed(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        return arguments[place] if place < len(arguments) else named[name]

    return observed


@torch.no_grad()
def attended(module: nn.MultiheadAttention, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What enters the out projection of packed attention, `[…, d]`.

    The projection is never called as a module, so no hook sees its input: the attention is computed once more with
    the identity in the projection's place.
    """
    projection = module.out_proj
    weight = projection.weight
    identity = torch.eye(module.embed_dim, device=weight.device, dtype=_cast() or weight.dtype)
    before = {name: projection.__dict__[name] for name in ("weight", "bias") if name in projection.__dict__}
    # an entry in the instance's __dict__ shadows the parameter (see model/substitution.py)
    projection.__dict__.update(weight=identity, bias=None)
    try:
        return type(module).forward(module, *arguments, **named)[0]
    finally:
        for name in ("weight", "bias"):
            projection.__dict__.pop(name)
        projection.__dict__.update(before)
