"""The WebUI's names of layers in kohya's key style: `networks.convert_diffusers_name_to_compvis` the other way round.

The WebUI names a module by its path in the loaded (compvis) model with "." written as "_". Files name it by its path
in diffusers' models, or, for SDXL's UNet, mostly by the compvis path; the WebUI reads both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...files import UNET, diffusers_name
from ...model import REFINER, SD1, SD2, Family

_COMPVIS_UNET = "diffusion_model_"
#: modules of OpenCLIP's text encoder: its name -> transformers'
_OPEN_CLIP = {"mlp_c_fc": "mlp_fc1", "mlp_c_proj": "mlp_fc2"}
_RESBLOCKS = "model_transformer_resblocks_"
_LAYERS = "text_model_encoder_layers_"


@dataclass(frozen=True)
class Names:
    """What files call a layer.

    Attributes:
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
    other = diffusers_name(name[len(_COMPVIS_UNET) :])
    diffusers = None if other is None else UNET + other
    if family.compvis_unet:
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
    if family == REFINER:
        # the WebUI leads no key of a text encoder to the refiner's: it looks for lora_te2_ in a second one
        return None
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
    path = f"{_LAYERS}{block}_{module}"
    # several programs number the only text encoder as the first of two
    return Names(prefix + path, () if number else (f"lora_te1_{path}",))
