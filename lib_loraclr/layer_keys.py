"""Names of layers.

A *layer key* is the name a layer has in kohya's LoRA files, the format every program reads:
`lora_unet_` or `lora_te_` (`lora_te1_`, `lora_te2_` where a family has two text encoders), then the
path of the module in diffusers' or transformers' model with "." written as "_".
"""

from __future__ import annotations

import re

UNET = "lora_unet_"
TEXT_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_")

# kohya splits at the first dot, and so does the WebUI
_PARAMETER = re.compile(r"^(?P<layer>[^.]+)\.(?P<parameter>.+)$")


def split_key(key: str) -> tuple[str, str] | None:
    """`lora_unet_x.lora_up.weight` -> (`lora_unet_x`, `lora_up.weight`); None if `key` is not of that form."""
    match = _PARAMETER.match(key)
    if match is None or not match["layer"].startswith((UNET, *TEXT_ENCODERS)):
        return None
    return match["layer"], match["parameter"]


def is_text_encoder(layer_key: str) -> bool:
    """Whether the layer belongs to a text encoder."""
    return layer_key.startswith(TEXT_ENCODERS)


def unet_key(module_path: str) -> str:
    """Layer key of a module of diffusers' `UNet2DConditionModel`."""
    return UNET + module_path.replace(".", "_")


def text_encoder_key(module_path: str, prefix: str = "lora_te_") -> str:
    """Layer key of a module of transformers' `CLIPTextModel`.

    transformers 5 dropped the `text_model.` level from its paths; files have always carried it.
    """
    path = module_path if module_path.startswith("text_model.") else f"text_model.{module_path}"
    return prefix + path.replace(".", "_")
