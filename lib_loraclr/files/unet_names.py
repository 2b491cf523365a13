"""Names of a UNet's modules: diffusers' and compvis' (ldm, sgm), one from the other.

A name is a module's path with "." written as "_", as layer keys have it. compvis numbers the blocks of a whole half of
the UNet, diffusers the blocks of each level. SD1, SD2 and SDXL have two residual blocks to a level, so that both halves
count three to a level: what changes the size stands third on the way down, a third residual block on the way up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: modules outside of the blocks: compvis -> diffusers
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
#: modules of a residual block: compvis -> diffusers
_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_PER_LEVEL = 3


def diffusers_name(compvis: str) -> str | None:
    """diffusers' name of a module by its name in compvis; None where diffusers has no such module."""
    if compvis in _OUTSIDE:
        return _OUTSIDE[compvis]
    match = re.fullmatch(r"(input_blocks|output_blocks|middle_block)_(\d+)_(?:(\d+)_)?(.+)", compvis)
    if match is None:
        return None
    half, number, place, rest = match[1], int(match[2]), match[3], match[4]
    if half == "middle_block":
        # the middle has no numbering inside its three parts: residual block, attention, residual block
        rest = rest if place is None else f"{place}_{rest}"
        return _inside("mid_block", number // 2, number == 1, rest)
    if half == "input_blocks":
        if rest == "op":
            return f"down_blocks_{number // _PER_LEVEL - 1}_downsamplers_0_conv"
        level, block = divmod(number - 1, _PER_LEVEL)
        return _inside(f"down_blocks_{level}", block, place == "1", rest)
    level, block = divmod(number, _PER_LEVEL)
    if rest == "conv":
        return f"up_blocks_{level}_upsamplers_0_conv"
    return _inside(f"up_blocks_{level}", block, place == "1", rest)


def _inside(level: str, block: int, attention: bool, rest: str) -> str | None:
    if attention:
        return f"{level}_attentions_{block}_{rest}"
    return f"{level}_resnets_{block}_{_RESNET[rest]}" if rest in _RESNET else None


def compvis_names(diffusers: Iterable[str]) -> dict[str, str]:
    """compvis' names of the modules of one UNet.

    Args:
        diffusers: diffusers' names of all its modules; whether a level has attention decides where what enlarges it stands

    Returns:
        diffusers' name -> compvis', for those that have one
    """
    names = list(diffusers)
    attentive = {match[1] for name in names if (match := re.match(r"up_blocks_(\d+)_attentions_", name))}
    found = {name: _compvis_name(name, attentive) for name in names}
    return {name: compvis for name, compvis in found.items() if compvis is not None}


def _compvis_name(name: str, attentive: set[str]) -> str | None:
    for compvis, other in _OUTSIDE.items():
        if other == name:
            return compvis
    if match := re.fullmatch(r"down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"input_blocks_{_PER_LEVEL * (int(match[1]) + 1)}_0_op"
    if match := re.fullmatch(r"up_blocks_(\d+)_upsamplers_0_conv", name):
        return f"output_blocks_{_PER_LEVEL * int(match[1]) + 2}_{2 if match[1] in attentive else 1}_conv"
    match = re.fullmatch(r"(?:(down|up)_blocks_(\d+)|mid_block)_(attentions|resnets)_(\d+)_(.+)", name)
    if match is None:
        return None
    half, level, kind, block, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        rest = next((compvis for compvis, other in _RESNET.items() if other == rest), None)
        if rest is None:
            return None
    place = int(kind == "attentions")
    if half is None:
        return f"middle_block_{place or 2 * block}_{rest}"
    number = _PER_LEVEL * level + block + (half == "down")
    return f"{'input' if half == 'down' else 'output'}_blocks_{number}_{place}_{rest}"
