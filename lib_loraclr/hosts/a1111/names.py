"""The WebUI's names of layers in kohya's key style: `networks.convert_diffusers_name_to_compvis` the other way round.

The WebUI names a module by its path in the loaded (compvis) model with "." written as "_". Files name it by its path
in diffusers' models, or, for SDXL's UNet, mostly by the compvis path; the WebUI reads both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...layer_keys import UNET
from ..base import SD1, SD2, SDXL, Family

_COMPVIS_UNET = "diffusion_model_"
#: modules of a residual block: compvis -> diffusers
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
#: modules of OpenCLIP's text encoder: its name -> transformers'
_OPEN_CLIP = {"mlp_c_fc": "mlp_fc1", "mlp_c_proj": "mlp_fc2"}
_RESBLOCKS = "model_transformer_resblocks_"
_LAYERS = "text_model_encoder_layers_"


@dataclass(frozen=True)
class Names:
    """Attributes:
    key: the layer key, as kohya's files of this family have it
    others: what else files call it
    """

    key: str
    others: tuple[str, ...] = ()


def names_of(name: str, family: Family, convert: Callable[[str, bool], str]) -> Names | None:
    """The layer keys of a module of the loaded model; None if no file could name it.

    Args:
        name: the WebUI's name of the module; of a packed projection with its `_q_proj`, …
        convert: `networks.convert_diffusers_name_to_compvis`
    """
    if not name.startswith(_COMPVIS_UNET):
        return _text_encoder_names(name, family)
    compvis = UNET + name[len(_COMPVIS_UNET) :]
    diffusers = _diffusers_unet_key(name[len(_COMPVIS_UNET) :])
    if family == SDXL:
        return Names(compvis, (diffusers,) if diffusers else ())
    # Only a name that the WebUI itself leads back to this module will do for the file that is written.
    if diffusers and convert(diffusers, family == SD2) == name:
        return Names(diffusers, (compvis,))
    return Names(compvis, (diffusers,) if diffusers else ())


def _text_encoder_names(name: str, family: Family) -> Names | None:
    if family == SD1:
        match = re.fullmatch(rf"transformer_{_LAYERS}(.+)", name)
        # some trainers number the only text encoder, and the WebUI lets them
        return Names(f"lora_te_{_LAYERS}{match[1]}", (f"lora_te1_{_LAYERS}{match[1]}",)) if match else None
    if family == SD2:
        return _open_clip_names(name, "", "lora_te_")
    match = re.fullmatch(rf"0_transformer_{_LAYERS}(.+)", name)
    if match:
        return Names(f"lora_te1_{_LAYERS}{match[1]}")
    return _open_clip_names(name, "1_", "lora_te2_")


def _open_clip_names(name: str, number: str, prefix: str) -> Names | None:
    match = re.fullmatch(rf"{number}{_RESBLOCKS}(\d+)_(.+)", name)
    if match is None:
        return None
    block, module = match.groups()
    module = _OPEN_CLIP.get(module) or re.sub("^attn_", "self_attn_", module)
    return Names(f"{prefix}{_LAYERS}{block}_{module}")


def _diffusers_unet_key(path: str) -> str | None:
    """Key of a UNet module by its path in diffusers, or None where diffusers has no such module.

    Both numberings count three blocks to a level on the way up and on the way down (two residual blocks and what changes
    the size), as the WebUI's own conversion does.
    """
    fixed = {
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
        "time_embed_0": "time_embedding_linear_1",
        "time_embed_2": "time_embedding_linear_2",
        "label_emb_0_0": "add_embedding_linear_1",
        "label_emb_0_2": "add_embedding_linear_2",
    }
    if path in fixed:
        return UNET + fixed[path]
    match = re.fullmatch(r"(input_blocks|output_blocks|middle_block)_(\d+)_(?:(\d+)_)?(.+)", path)
    if match is None:
        return None
    part, number, inner, rest = match[1], int(match[2]), match[3], match[4]
    if part == "middle_block":
        rest = rest if inner is None else f"{inner}_{rest}"
        return _block(f"{UNET}mid_block", 0 if number == 1 else number // 2, number == 1, rest)
    if part == "input_blocks":
        if rest == "op":
            return f"{UNET}down_blocks_{number // 3 - 1}_downsamplers_0_conv"
        return _block(f"{UNET}down_blocks_{(number - 1) // 3}", (number - 1) % 3, inner == "1", rest)
    if rest == "conv":
        return f"{UNET}up_blocks_{number // 3}_upsamplers_0_conv"
    return _block(f"{UNET}up_blocks_{number // 3}", number % 3, inner == "1", rest)


def _block(level: str, number: int, attention: bool, rest: str) -> str | None:
    if attention:
        return f"{level}_attentions_{number}_{rest}"
    return f"{level}_resnets_{number}_{_RESNET[rest]}" if rest in _RESNET else None
