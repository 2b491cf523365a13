"""What the loaded checkpoint is, and its layers, by Forge's own list of the names that LoRA files have for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

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
from . import engine

#: weights in these can be added to
WHOLE = {torch.float32, torch.float16, torch.bfloat16}
#: (family, text encoder) -> how keys of its layers begin; the refiner's is called in Forge what SD1's is, and a file for both
#: cannot tell them apart
_PREFIXES = {
    (SD1, "clip_l"): "lora_te_",
    (SD2, "clip_h"): "lora_te_",
    (SDXL, "clip_l"): "lora_te1_",
    (SDXL, "clip_g"): "lora_te2_",
}


def family_of(model: Any) -> Family:
    """The family of a loaded checkpoint.

    Raises:
        LoraclrError: LoRAs of its kind cannot be merged
    """
    title, channels = model.sd_checkpoint_info.title, getattr(engine.unet(model), "in_channels", None)
    encoders = {name for name, _ in engine.text_encoders(model).named_children()}
    if getattr(model, "is_sdxl", False):
        family = SDXL if encoders >= {"clip_l", "clip_g"} else REFINER
    # reForge takes SD2 for SD1
    elif getattr(model, "is_sd2", False) or "clip_h" in encoders:
        family = SD2
    elif getattr(model, "is_sd1", False):
        family = SD1
    else:
        raise LoraclrError(
            f"{title} is a {type(model).__name__} model, which LoRACLR cannot merge on: load a Stable Diffusion 1.x, 2.x or "
            "XL checkpoint."
        )
    if family is SD2 and getattr(engine.unet(model), "num_classes", None) is not None:
        raise LoraclrError(
            f"{title} is Stable unCLIP: load a checkpoint that only reads prompts, or one for inpainting."
        )
    if engine.prediction_type(model) not in ("epsilon", "v_prediction"):
        raise LoraclrError(
            f"{title} is a model of the EDM kind (Playground 2.5, CosXL), whose noise a merge cannot be recorded on: load a "
            "Stable Diffusion 1.x, 2.x or XL checkpoint that predicts noise or velocities."
        )
    if channels not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        name = OTHER_CHANNELS.get(channels, f"a model that reads {channels} channels")
        raise LoraclrError(f"{title} is {name}: load a checkpoint that only reads prompts, or one for inpainting.")
    return family


def refuse_quantised(model: Any) -> None:
    """Refuse weights that nothing can be added to.

    Raises:
        LoraclrError: the checkpoint's weights are in fp8, nf4 or another form that is not a plain number each
    """
    title, kind = (
        model.sd_checkpoint_info.title,
        getattr(model.forge_objects_original.unet.model, "storage_dtype", None),
    )
    kinds = {kind} if kind is not None else set()
    for part in (engine.unet(model), engine.text_encoders(model)):
        kinds |= {parameter.dtype for parameter in part.parameters() if parameter.is_floating_point()}
        kinds |= {"a quantised form" for parameter in part.parameters() if not parameter.is_floating_point()}
    strange = kinds - WHOLE
    if strange:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in strange))
        raise LoraclrError(
            f"Weights of {title} are kept in {named}, too coarse to merge on: in Forge set Diffusion in Low Bits at the top to "
            "Automatic, start without options that keep weights in fp8, or choose a file of the checkpoint in fp16 or bf16."
        )


def model_layers(model: Any, family: Family) -> tuple[dict[str, Layer], dict[str, str]]:
    """Every linear layer, convolution, norm and bias of text encoder(s) and UNet that Forge finds by a LoRA file's names.

    Returns:
        layer key -> layer, and other names that files have for it -> layer key
    """
    lora, layers, aliases = engine.module("patcher.lora"), {}, {}
    # the dictionary is an argument since the default is one for all calls
    known = lora.model_lora_keys_unet(model.forge_objects_original.unet.model, {})
    for path, module in engine.unet(model).named_modules(prefix="diffusion_model"):
        names = webui.names_of(_flat(path), family, _converter(known))
        if names is not None and _target(known.get(names.key)) == path:
            aliases.update((other, names.key) for other in names.others)
            layers.update({names.key + part: layer for part, layer in _adaptable(module).items()})
    known = lora.model_lora_keys_clip(engine.text_encoders(model), {})
    for path, module in engine.text_encoders(model).named_modules():
        match = re.fullmatch(r"(clip_\w)\.transformer\.(text_model\.encoder\.layers\..+)", path)
        prefix = _PREFIXES.get((family, match[1])) if match else None
        key = f"{prefix}{_flat(match[2])}" if prefix else None
        if key is not None and _target(known.get(key)) == path:
            numbered = f"lora_te1_{_flat(match[2])}"
            if prefix == "lora_te_" and _target(known.get(numbered)) == path:
                aliases[numbered] = key
            layers.update({key + part: layer for part, layer in _adaptable(module).items()})
    return layers, aliases


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _target(parameter: Any) -> str:
    """Path of the module that a file's key leads to; a key can lead to a part of a parameter too, which comes as a tuple."""
    return parameter.removesuffix(".weight") if isinstance(parameter, str) else ""


#: a name that Forge reads and AUTOMATIC1111's WebUI does not: the file that is written is to work in both
_FORGES_OWN = "lora_unet_conv_norm_out"


def _converter(known: Mapping[str, Any]) -> Callable[[str, bool], str]:
    """As `networks.convert_diffusers_name_to_compvis` of the other WebUI: the module that a file's key leads to."""
    return lambda key, is_sd2: "" if key == _FORGES_OWN else _flat(_target(known.get(key)))


def _adaptable(module: nn.Module) -> dict[str, Layer]:
    """As `adaptable_layers`, for Forge's own linear layers too, which are not torch's."""
    if type(module).__name__ != "Linear" or isinstance(module, nn.Linear):
        return adaptable_layers(module)
    found = {}
    if module._parameters.get("weight") is not None:
        found[""] = Layer.of(module)
        if module._parameters.get("bias") is not None:
            found[".bias"] = Layer(module, module, "bias", observed=always_one)
    return found
