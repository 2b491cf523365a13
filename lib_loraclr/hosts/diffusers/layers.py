"""The layers of diffusers' and transformers' models, by layer key."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from ...files import UNET, compvis_names, text_encoder_key, unet_key
from ...model import SD1, Family, Layer, adaptable_layers


def model_layers(unet: nn.Module, *text_encoders: nn.Module, family: Family = SD1) -> dict[str, Layer]:
    """Every linear layer, convolution, norm and bias of the models, by the key that the family's LoRA files have for it.

    Norms of OpenCLIP's text encoders and what it packs have no name that the WebUI reads.

    Args:
        text_encoders: as many as `family` has, in their order
    """
    found = {}
    for prefix, encoder in zip(family.text_encoders, text_encoders, strict=True):
        # the projection of the pooled output is no layer of a transformer, and no trainer adapts it
        inner = getattr(encoder, "text_model", encoder)
        open_clip = prefix == family.open_clip
        for path, part, layer in _adaptable(inner):
            unnamed = layer.is_vector and re.search(r"norm|[qkv]_proj$" if open_clip else "final_layer_norm", path)
            if not unnamed:
                found[text_encoder_key(path, prefix) + part] = layer
    parts = [(unet_key(path)[len(UNET) :], part, layer) for path, part, layer in _adaptable(unet)]
    names = compvis_names(name for name, _, _ in parts)
    if not family.compvis_unet:
        # of the others, this alone the WebUI knows only by compvis' name
        names = {name: compvis for name, compvis in names.items() if name == "conv_norm_out"}
    found.update((UNET + names.get(name, name) + part, layer) for name, part, layer in parts)
    return found


def _adaptable(model: nn.Module) -> Iterator[tuple[str, str, Layer]]:
    """Path of a module, which parameter of it, and where that lives."""
    for path, module in model.named_modules():
        for part, layer in adaptable_layers(module).items():
            yield path, part, layer
