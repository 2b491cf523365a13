"""Names of layers.

A *layer key* is the name a layer has in kohya's LoRA files, the format every program reads:
`lora_unet_` or `lora_te_` (`lora_te1_`, `lora_te2_` where a family has two text encoders), then the
path of the module in diffusers' or transformers' model with "." written as "_".

`split_key` reads every style of key that LoRA files come in. It leaves a UNet's modules under the name that the file
has for them, diffusers' or compvis'; a host knows both (`Host.aliases`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .unet_names import compvis_names, diffusers_name

UNET = "lora_unet_"
TEXT_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_")
_TE, _TE1, _TE2 = TEXT_ENCODERS
_LAYERS = "text_model_encoder_layers_"

#: beginnings of names without dots -> beginning of the layer key; kohya's first, then those of kohya's OFT, of
#: LyCORIS without a trainer around it, and of the WebUI's own modules
_UNDERSCORED = {
    **{prefix: prefix for prefix in (UNET, *TEXT_ENCODERS)},
    "oft_unet_": UNET,
    "lycoris_unet_": UNET,
    "lycoris_text_encoder_2_": _TE2,
    "lycoris_text_encoder_": _TE1,
    "lycoris_text_model_": f"{_TE1}text_model_",
    "lycoris_": UNET,
    "diffusion_model_": UNET,
    "transformer_text_model_": f"{_TE}text_model_",
    "0_transformer_text_model_": f"{_TE1}text_model_",
    "model_transformer_resblocks_": f"{_TE}{_LAYERS}",
    "1_model_transformer_resblocks_": f"{_TE2}{_LAYERS}",
}
#: beginnings of dotted names -> beginning of the layer key: diffusers, PEFT, OneTrainer (OMI and its own), checkpoints
_DOTTED = {
    "unet.": UNET,
    "lora_unet.": UNET,
    "diffusion_model.": UNET,
    "model.diffusion_model.": UNET,
    "transformer.": f"{UNET}transformer_",
    "text_encoder.": _TE1,
    "text_encoder_2.": _TE2,
    "lora_te.": _TE,
    "lora_te1.": _TE1,
    "lora_te2.": _TE2,
    "clip_l.": _TE1,
    "clip_g.": _TE2,
    "text_encoders.clip_l.transformer.": _TE1,
    "text_encoders.clip_g.transformer.": _TE2,
    # PEFT saves one model at a time, and names only what is inside
    "text_model.": f"{_TE1}text_model_",
    "encoder.layers.": f"{_TE1}{_LAYERS}",  # as transformers 5 names it
    **{
        f"{part}.": f"{UNET}{part}_"
        for part in ("down_blocks", "mid_block", "up_blocks", "time_embedding", "add_embedding")
    },
}
#: modules of a UNet that are not inside another, as PEFT names them
_TOP_MODULES = ("conv_in", "conv_out", "conv_norm_out")
#: what PEFT, torch.compile and parallel training put into a path, anywhere in it
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:base_model\.model|base_model|_orig_mod|module)\.")
#: the same in names without dots
_UNDERSCORED_WRAPPERS = re.compile(r"^(?:base_model_model_|module_)|(?:(?<=_)|^)_orig_mod_")


def _longest_of(prefixes: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of these that a name begins with; a file has thousands of names."""
    return re.compile("|".join(re.escape(prefix) for prefix in sorted(prefixes, key=len, reverse=True)))


_UNDERSCORED_PREFIX, _DOTTED_PREFIX = _longest_of(_UNDERSCORED), _longest_of(_DOTTED)

#: what the parameters of a layer are called, at the end of a dotted name
_PARAMETER = re.compile(
    # diffusers' first LoRAs write `to_q_lora.up.weight`
    r"(?:\.|_(?=lora\.))(?P<parameter>lora\.(?:up|down)\.weight|lora_linear_layer\.(?:up|down)\.weight"
    r"|(?:lora_)?(?:up|down)\.weight|lora_mid\.weight|lora_[AB](?:\.[\w.-]+)?\.weight|lora_magnitude_vector(?:\.[\w-]+)*"
    r"|[ab][12]\.weight|bm\.weight|alpha|scale|dora_scale|hada_\w+|lokr_\w+|oft_blocks|oft_diag|rescale"
    r"|diff|diff_b|w_norm|b_norm|bias_\w+)$"
)
#: other names of parameters -> kohya's
_RENAMED = (
    (re.compile(r"(?:lora\.|lora_linear_layer\.|lora_)?(up|down)\.weight"), r"lora_\1.weight"),
    # PEFT writes the adapter's name between, diffusers not
    (re.compile(r"lora_([AB])\.(?:[\w.-]+\.)?weight"), r"lora_\1.weight"),
    (re.compile(r"lora_magnitude_vector(?:\.[\w-]+)*"), "lora_magnitude_vector"),
)
#: modules of OpenCLIP's text encoder, and of diffusers' first LoRAs: their name -> transformers'
_TEXT_MODULES = {
    "mlp_c_fc": "mlp_fc1",
    "mlp_c_proj": "mlp_fc2",
    "attn_q_proj": "self_attn_q_proj",
    "attn_k_proj": "self_attn_k_proj",
    "attn_v_proj": "self_attn_v_proj",
    "attn_out_proj": "self_attn_out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "self_attn_to_q": "self_attn_q_proj",
    "self_attn_to_k": "self_attn_k_proj",
    "self_attn_to_v": "self_attn_v_proj",
    "self_attn_to_out": "self_attn_out_proj",
}


def split_key(key: str) -> tuple[str, str] | None:
    """The layer and the parameter that a key of a file names; None if the key is of no style we know.

    `lora_unet_x.lora_up.weight` and `unet.x.lora_B.weight` -> (`lora_unet_x`, `lora_up.weight` or `lora_B.weight`).
    """
    key = _WRAPPERS.sub("", key)
    head, _, tail = key.partition(".")
    match = _PARAMETER.search(key)
    # kohya splits at the first dot, and so does the WebUI
    if prefix := _UNDERSCORED_PREFIX.match(head):
        path = _UNDERSCORED_WRAPPERS.sub("", head[prefix.end() :])
        if not (tail and path):
            return None
        if match is not None and match.start() > len(head):
            # some write the last part of the path with dots: `…_attn1.to_out.0.lora_magnitude_vector`
            path, tail = path + key[len(head) : match.start()].replace(".", "_"), match["parameter"]
        return _normal(_UNDERSCORED[prefix[0]] + path), _parameter(tail)
    prefix = _DOTTED_PREFIX.match(key)
    if match is not None and key[: match.start()] in _TOP_MODULES:
        return UNET + key[: match.start()], _parameter(match["parameter"])
    if prefix is None or match is None or match.start() <= prefix.end():
        return None
    path = key[prefix.end() : match.start()].replace(".processor", "")
    layer = _DOTTED[prefix[0]]
    if layer in TEXT_ENCODERS and not path.startswith(("text_model.", "text_projection")):
        layer += "text_model_"  # transformers 5 dropped this level
    return _normal(layer + path.replace(".", "_")), _parameter(match["parameter"])


def own_parameter(key: str) -> str:
    """The parameter at the end of a key that `split_key` takes, in its own words: of `x.lora_A.default.weight` all but `x.`"""
    match = _PARAMETER.search(key)
    if match is not None:
        return match["parameter"]
    return key.partition(".")[2]


def module_path(key: str) -> str | None:
    """The path of the module that a dotted key names, in its model: `unet.x.y.alpha` -> `x.y`; None for every other style."""
    key = _WRAPPERS.sub("", key)
    match = _PARAMETER.search(key)
    if match is None or _UNDERSCORED_PREFIX.match(key.partition(".")[0]):
        return None
    path = key[: match.start()].replace(".processor", "")
    # a prefix that is a part of the path (`down_blocks.`) is no model's name
    prefix = _DOTTED_PREFIX.match(path)
    of_model = prefix is not None and _DOTTED[prefix[0]] in (UNET, *TEXT_ENCODERS)
    return path[prefix.end() :] if of_model else path


def _parameter(name: str) -> str:
    for pattern, replacement in _RENAMED:
        if pattern.fullmatch(name):
            return pattern.sub(replacement, name)
    return name


def _normal(layer: str) -> str:
    """The layer by the names of diffusers' and transformers' modules, where those differ within one layer."""
    if not is_text_encoder(layer):
        # `to_out.0` was `to_out` in diffusers' first LoRAs
        return re.sub(r"(_attn[12]_to_out)$", r"\1_0", layer)
    match = re.fullmatch(rf"(lora_te\d?_{_LAYERS}\d+_)(.+)", layer)
    return layer if match is None else match[1] + _TEXT_MODULES.get(match[2], match[2])


def other_names(keys: Iterable[str]) -> dict[str, str]:
    """What files call the layers of one model besides their keys: other name -> layer key.

    A UNet's modules by compvis' names for diffusers' and the other way round; the only text encoder numbered as the first of
    two, as several programs do.
    """
    keys = {key for key in keys if "." not in key}  # a bias goes by its layer's name
    modules = [key[len(UNET) :] for key in keys if key.startswith(UNET)]
    others = {UNET + compvis: UNET + name for name, compvis in compvis_names(modules).items()}
    others |= {UNET + other: UNET + name for name in modules if (other := diffusers_name(name)) is not None}
    others |= {_TE1 + key[len(_TE) :]: key for key in keys if key.startswith(_TE)}
    return {other: key for other, key in others.items() if other not in keys}


def is_text_encoder(layer_key: str) -> bool:
    """Whether the layer belongs to a text encoder."""
    return layer_key.startswith(TEXT_ENCODERS)


def attention_projections(layer_key: str) -> tuple[str, ...]:
    """Keys of the four projections of the text encoder's attention that the layer is one of; none if it is not."""
    match = re.fullmatch(r"(.*_self_attn_)(?:q|k|v|out)_proj", layer_key)
    return tuple(f"{match[1]}{letter}_proj" for letter in ("q", "k", "v", "out")) if match else ()


def incomplete_attention(keys: Iterable[str], prefix: str) -> list[str]:
    """Those of a text encoder's projections whose attention is not there with all four.

    Args:
        prefix: of the text encoder's layer keys; empty for no text encoder
    """
    keys = set(keys)
    return sorted(
        key for key in keys if prefix and key.startswith(prefix) and not keys.issuperset(attention_projections(key))
    )


def bias_key(layer_key: str) -> str:
    """Key of a layer's bias, which merges as a layer of its own with one input, always 1."""
    return f"{layer_key}.bias"


def unet_key(module_path: str) -> str:
    """Layer key of a module of diffusers' `UNet2DConditionModel`."""
    return UNET + module_path.replace(".", "_")


def text_encoder_key(module_path: str, prefix: str = "lora_te_") -> str:
    """Layer key of a module of transformers' `CLIPTextModel`.

    transformers 5 dropped the `text_model.` level from its paths; files have always carried it.
    """
    path = module_path if module_path.startswith("text_model.") else f"text_model.{module_path}"
    return prefix + path.replace(".", "_")
