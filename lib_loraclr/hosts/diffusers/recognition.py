"""What kind of checkpoint a file or folder holds, told by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import LoraclrError
from ...model import INPAINTING_CHANNELS, LATENT_CHANNELS, OTHER_CHANNELS, REFINER, SD1, SD2, SDXL, Family

UNET_PREFIX = "model.diffusion_model."
SUPPORTED = "Stable Diffusion 1.x, 2.x or XL (base, refiner or for inpainting)"

#: the beginning of a tensor's name (a regular expression) that only this kind has, where there is no UNet of ours
_INSTEAD = {
    r"lora_(unet|te)|.*\.lora_(A|B|up|down)\.": "a LoRA",
    r"(model\.diffusion_model\.|transformer\.|)joint_blocks\.": "Stable Diffusion 3",
    r"(model\.diffusion_model\.|)double_blocks\.\d+\.img_attn\.": "Flux, or made like it",
    r"(model\.diffusion_model\.|)double_layers\.": "AuraFlow",
    r"(model\.diffusion_model\.|)down_blocks\.\d+\.\d+\.(kv_mapper|channelwise)": "Stable Cascade",
    r"control_model\.|input_hint_block\.": "a ControlNet",
    r".*(adaLN_modulation|scale_shift_table|patch_embedding)": "a diffusion transformer",
}
#: the same, where there is one
_BESIDES = {
    r"cond_stage_model\.roberta\.": "AltDiffusion",
    r"depth_model\.": "Stable Diffusion 2 with depth",
    r"embedder\.model\.|noise_augmentor\.": "Stable unCLIP",
    r"edm_mean$|edm_vpred\.": "a model of the EDM kind (Playground 2.5, CosXL)",
}

#: of text encoders in single files; OpenCLIP names its tensors in its own way
CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP = ("conditioner.embedders.1.model.", "cond_stage_model.model.", "conditioner.embedders.0.model.")


@dataclass(frozen=True)
class Kind:
    """What kind of checkpoint it is.

    Attributes:
        family: which LoRAs fit
        inpainting: whether the UNet also reads a mask and what it leaves of a picture
    """

    family: Family
    inpainting: bool


def prefix_of(tensors: Mapping[str, Tensor], prefixes: Iterable[str]) -> str | None:
    """The first of some prefixes that a tensor has, or None."""
    return next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in tensors)), None)


def recognise_file(tensors: Mapping[str, Tensor], source: str) -> Kind:
    """The kind of a single-file checkpoint.

    Args:
        source: what messages call it

    Raises:
        LoraclrError: LoRAs of its kind cannot be merged, or something is missing from it
    """
    ours = f"{UNET_PREFIX}input_blocks.0.0.weight" in tensors
    for pattern, name in (_BESIDES if ours else _INSTEAD).items():
        if any(map(re.compile(pattern).match, tensors)):
            raise _refusal(source, name)
    if not ours:
        raise LoraclrError(f"{source} is not a Stable Diffusion checkpoint: name one of {SUPPORTED}.")
    clip, open_clip = prefix_of(tensors, CLIP), prefix_of(tensors, OPEN_CLIP)
    vector = f"{UNET_PREFIX}label_emb.0.0.weight" in tensors
    families = {
        (True, False, False): SD1,
        (False, True, False): SD2,
        (True, True, True): SDXL,
        (False, True, True): REFINER,
    }
    family = families.get((clip is not None, open_clip is not None, vector))
    if family is None or prefix_of(tensors, ["first_stage_model."]) is None:
        raise LoraclrError(
            f"{source} has not all that a Stable Diffusion checkpoint has (UNet, text encoders and VAE), or more than that: "
            f"name a whole checkpoint of {SUPPORTED}."
        )
    if vector and prefix_of(tensors, [f"{UNET_PREFIX}middle_block.1."]) is None:
        raise _refusal(source, "SSD-1B")
    return Kind(family, _inpainting(tensors[f"{UNET_PREFIX}input_blocks.0.0.weight"].shape[1], source))


def recognise_models(unet: Mapping[str, Tensor], text_encoders: int, source: str) -> Kind:
    """The kind of a diffusers folder.

    Args:
        unet: the UNet's tensors
        text_encoders: how many there are

    Raises:
        LoraclrError: LoRAs of its kind cannot be merged
    """
    if "add_embedding.linear_1.weight" in unet:
        if not any(key.startswith("mid_block.attentions.") for key in unet):
            raise _refusal(source, "SSD-1B")
        family = SDXL if text_encoders == 2 else REFINER
    elif any(key.startswith(("class_embedding.", "encoder_hid_proj.", "add_embedding.")) for key in unet):
        raise _refusal(source, "conditioned by more than prompts")
    else:
        # SD1 projects into its transformers by convolutions, everything since by linear layers
        projections = [tensor for key, tensor in unet.items() if key.endswith("attentions.0.proj_in.weight")]
        family = SD1 if projections and projections[0].dim() == 4 else SD2
    return Kind(family, _inpainting(unet["conv_in.weight"].shape[1], source))


def _inpainting(channels: int, source: str) -> bool:
    if channels not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        raise _refusal(source, OTHER_CHANNELS.get(channels, f"a model that reads {channels} channels"))
    return channels == INPAINTING_CHANNELS


def _refusal(source: str, name: str) -> LoraclrError:
    return LoraclrError(f"{source} is {name}: name a checkpoint of {SUPPORTED}.")
