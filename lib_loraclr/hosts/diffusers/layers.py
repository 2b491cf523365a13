"""The layers of diffusers' and transformers' models, by layer key."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...layer_keys import UNET, text_encoder_key, unet_key
from ...unet_names import compvis_names
from .. import base
from ..substitution import Layer


def model_layers(unet: nn.Module, *text_encoders: nn.Module, family: base.Family = base.SD1) -> dict[str, Layer]:
    """Every linear layer and convolution of the models, by the key that the family's LoRA files have for it.

    Args:
        text_encoders: as many as `family` has, in their order
    """
    found = {}
    for prefix, encoder in zip(family.text_encoders, text_encoders, strict=True):
        # the projection of the pooled output is no layer of a transformer, and no trainer adapts it
        inner = getattr(encoder, "text_model", encoder)
        found.update((text_encoder_key(path, prefix), layer) for path, layer in _adaptable(inner))
    layers = {unet_key(path)[len(UNET) :]: layer for path, layer in _adaptable(unet)}
    names = compvis_names(layers) if family.compvis_unet else {}
    found.update((UNET + names.get(name, name), layer) for name, layer in layers.items())
    return found


def _adaptable(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield path, Layer.of(module)
