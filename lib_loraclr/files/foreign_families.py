"""Families that cannot be merged, by what only their files have: names of modules, and what the metadata call them.

One line per family; the first that fits a file is it. Names are compared with "." as "_" and without what stands before the
model's own modules, so that every trainer's style is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: what trainers put before the path of a module
_BEFORE = re.compile(
    r"^(?:base_model_model_|base_model_|model_diffusion_model_|diffusion_model_|lora_transformer_|lora_prior_unet_|lora_unet_"
    r"|lycoris_|unet_|transformer_(?!blocks_|text_model|resblocks))+"
)
_BLOCK = r"transformer_blocks_\d+_"
#: family -> the beginning of the path of one of its modules
_MODULES = {
    "Qwen-Image": rf"{_BLOCK}(?:img|txt)_(?:mlp|mod)",
    "AuraFlow": r"joint_transformer_blocks_|(?:double|single)_layers_\d+_",
    "HiDream": r"(?:double|single)_stream_blocks_",
    "HunyuanVideo": r"txt_in_individual_token_refiner|token_refiner_|context_embedder_token_refiner",
    "Chroma": r"distilled_guidance_layer_",
    "Flux": r"(?:double_blocks|single_blocks|single_transformer_blocks)_",
    "SD3": r"joint_blocks_|context_embedder",
    "SD3 or Flux": rf"{_BLOCK}attn_",
    "LTX-Video": r"patchify_proj",
    "PixArt": rf"adaln_single_|caption_projection_|t_embedder_|y_embedder_|csize_embedder_|{_BLOCK}scale_shift_table",
    "PixArt, LTX-Video or another diffusion transformer": rf"{_BLOCK}|transformer_layers_\d+_",
    "Wan": r"blocks_\d+_(?:self_attn|cross_attn|ffn)_",
    "HunyuanDiT": r"blocks_\d+_(?:attn[12]_(?:Wqkv|q_proj|kv_proj|out_proj)|mlp_fc|default_modulation)",
    "Lumina, Z-Image or another diffusion transformer": (
        r"(?:layers|noise_refiner|context_refiner)_\d+_(?:attention|feed_forward)_"
    ),
    "a diffusion transformer": r"(?:blocks|layers)_\d+_",
    "Stable Cascade": (
        r"(?:down|up)_blocks_\d+_\d+_(?:attention|channelwise|kv_mapper|depthwise|mapper)|clip_(?:txt|img)_mapper|effnet_"
    ),
    "AnimateDiff": r".*(?:motion_modules_\d+_|temporal_transformer_)",
    "ControlNet-LLLite": r"lllite_",
}
#: text encoders that no Stable Diffusion 1, 2 or XL has, by the beginning of the whole key
_TEXT_ENCODERS = (
    r"lora_te3_|lora_t5|t5xxl|lora_te_t5|text_encoder_3_|text_encoders_(?!clip_[lg]_)|lora_te\d?_(?:encoder_block|layers)_\d+|"
    r"(?:lora_)?(?:llama|gemma|qwen|umt5|mt5)"
)
_T5 = "a family with T5 or a language model as text encoder (SD3, Flux, PixArt, …)"

_BY_MODULE = [(family, re.compile(pattern)) for family, pattern in _MODULES.items()]
_BY_TEXT_ENCODER = re.compile(_TEXT_ENCODERS, re.IGNORECASE)

#: what the metadata call a family, wherever it stands in them
_BY_NAME = {
    "Flux": r"flux",
    "SD3": r"stable[-_ ]?diffusion[-_ ]?v?3|\bsd[-_ ]?v?3",
    "Qwen-Image": r"qwen",
    "PixArt": r"pixart",
    "LTX-Video": r"\bltx",
    "Wan": r"\bwan(?![a-z])",
    "HunyuanVideo or HunyuanDiT": r"hunyuan",
    "Lumina": r"lumina",
    "Z-Image": r"z[-_]?image",
    "Chroma": r"chroma",
    "HiDream": r"hidream",
    "AuraFlow": r"aura[-_ ]?flow",
    "Sana": r"\bsana(?![a-z])",
    "Kolors": r"kolors",
    "Stable Cascade": r"cascade|w(?:ue|ü)rstchen",
    "CogVideoX": r"cogvideo",
    "Mochi": r"mochi",
    "Cosmos": r"cosmos",
    "Kandinsky": r"kandinsky",
    "OmniGen": r"omnigen",
    "Stable Video Diffusion": r"stable[-_ ]video",
    "AnimateDiff": r"animatediff",
}
_NAMES = [(family, re.compile(pattern, re.IGNORECASE)) for family, pattern in _BY_NAME.items()]
#: metadata that name the family
NAMING = ("modelspec.architecture", "ss_base_model_version")


def foreign_family(keys: Iterable[str], metadata: Mapping[str, str]) -> str | None:
    """The family that cannot be merged and that a file was made for; None where nothing tells of one.

    Args:
        keys: of the file's tensors, or of its layers
        metadata: of the file; they tell it more exactly where modules of several families are called alike
    """
    return _by_metadata(metadata) or _by_modules(keys)


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    for name in NAMING:
        said = metadata.get(name, "")
        found = next((family for family, pattern in _NAMES if pattern.search(said)), None)
        if found:
            return found
    return None


def _by_modules(keys: Iterable[str]) -> str | None:
    flat = [key.replace(".", "_") for key in keys]
    paths = {_BEFORE.sub("", key) for key in flat}
    for family, pattern in _BY_MODULE:
        if any(map(pattern.match, paths)):
            return family
    return _T5 if any(map(_BY_TEXT_ENCODER.match, flat)) else None
