"""The family of models that a LoRA was made for: by its tensors, and by its metadata where those leave it open.

One answer for a merge, the tab's Check, the picker and `inspect`. Families that cannot be merged are in `foreign_families`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .deltas import kind_of
from .foreign_families import foreign_family
from .layer_keys import TEXT_ENCODERS, UNET, is_text_encoder, split_key
from .lora_files import LoraFile
from .tensor_files import StoredTensor, read_header

#: what cross-attention reads
_BY_CONTEXT = {768: "SD1", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
_CROSS_ATTENTION = re.compile(
    rf"{UNET}\w+_(?:attentions_\d+|blocks_\d+_1|block_1)_transformer_blocks_\d+_attn2_to_[kv]$"
)
#: the width of a text encoder; SDXL's first one is SD1's
_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2", 1280: "SDXL"}
#: beginnings of what the metadata say; the longest first
_BY_VERSION = {
    "sdxl_refiner": "SDXL refiner",
    "sdxl": "SDXL",
    "sd_xl": "SDXL",
    "sd_v1": "SD1",
    "sd_1": "SD1",
    "sd1": "SD1",
    "sd_v2": "SD2",
    "sd_2": "SD2",
    "sd2": "SD2",
}
_BY_ARCHITECTURE = {
    "stable-diffusion-xl-v1-refiner": "SDXL refiner",
    "stable-diffusion-xl": "SDXL",
    "stable-diffusion-v1": "SD1",
    "stable-diffusion-v2": "SD2",
}


def family_of(file: LoraFile) -> str | None:
    """SD1, SD2, SDXL, SDXL refiner (`model.Family.name`) or one that cannot be merged; None where nothing tells.

    Tensors are asked before metadata, but for the text encoder, which Flux and SD3 share with Stable Diffusion.
    """
    keys = [*file.layers, *file.unknown]
    certain = _certain(keys, file.layers, file.metadata)
    return certain or _by_metadata(file.metadata) or ("SDXL" if _of_sdxl(file.layers) else None)


def family_by_header(path: Path) -> str | None:
    """The family as `family_of` has it, of a file whose tensors are left where they are; None where its shapes do not tell.

    Which of the families that can be merged the metadata name is not asked: people correct that on the WebUI's card.

    Raises:
        LoraclrError: it cannot be read as safetensors
    """
    header = read_header(path)
    # Cross-attention tells nearly always, and is a small part of a large file.
    telling = _by_context(_shapes(stored for stored in header.tensors if re.search(r"attn2.to_[kv]", stored.name)))
    if telling:
        return telling
    return _certain([stored.name for stored in header.tensors], _shapes(header.tensors), header.metadata)


def _certain(
    keys: Iterable[str], layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str]
) -> str | None:
    """By names and shapes, and by metadata where they name a family that cannot be merged."""
    return _by_context(layers) or foreign_family(keys, metadata) or family_by_tensors(layers)


def _shapes(tensors: Iterable[StoredTensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if parts := split_key(tensor.name):
            layers.setdefault(parts[0], {})[parts[1]] = torch.empty(tensor.shape, device="meta")
    return layers


def family_by_tensors(layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The same, by names and shapes alone, which cannot be mistaken.

    Args:
        layers: layer key -> parameter name -> tensor
    """
    by_context = _by_context(layers)
    if by_context:
        return by_context
    if _of_sdxl(layers):
        # the refiner has SDXL's second text encoder alone, and four transformer blocks to an attention
        both = any(key.startswith(TEXT_ENCODERS[1]) for key in layers)
        return "SDXL" if both or any(re.search(r"_transformer_blocks_[4-9]", key) for key in layers) else None
    return _by_text_encoder(layers)


def _by_context(layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """By what a UNet's cross-attention reads, which nothing else has."""
    telling = {key: own for key, own in layers.items() if _CROSS_ATTENTION.match(key)}
    found = {_BY_CONTEXT[width] for _, _, width in _sides(telling) if width in _BY_CONTEXT}
    return found.pop() if len(found) == 1 else None


def _of_sdxl(layers: Iterable[str]) -> bool:
    """Whether it is for SDXL or its refiner: they alone have that text encoder, or several transformer blocks to an attention."""
    return any(key.startswith(TEXT_ENCODERS[2]) or re.search(r"_transformer_blocks_[1-9]", key) for key in layers)


def _by_text_encoder(layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """By its width, where the UNet does not tell: it may be untouched, or (IA)³ may tell nothing of what enters."""
    widths = set()
    for key, d_out, channels in _sides(layers):
        if is_text_encoder(key) and key.endswith(("_q_proj", "_k_proj", "_v_proj", "_out_proj")):
            widths |= {d_out, channels}
    families = {_BY_TEXT_WIDTH[width] for width in widths if width in _BY_TEXT_WIDTH}
    if len(families) != 1:
        return None
    family = families.pop()
    # SDXL's first text encoder by itself looks like SD1's; a UNet's outermost level has attention in SD1 alone
    outermost = re.compile(
        rf"{UNET}(down_blocks_0_attentions|input_blocks_[12]_1_|up_blocks_3_|output_blocks_(9|10|11)_)"
    )
    alone = any(key.startswith(TEXT_ENCODERS[1]) for key in layers) and not any(map(outermost.match, layers))
    return None if family == "SD1" and alone else family


def _sides(layers: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, int | None, int | None]]:
    """Layer key, d_out and channels in, where the parameters tell them."""
    for key, parameters in layers.items():
        kind = kind_of(parameters)
        if kind is not None:
            try:
                yield key, *kind.sides(parameters)
            # shapes that fit no layer are refused where the delta is made; a header has no numbers to read (`on_input`)
            except (IndexError, KeyError, RuntimeError):
                continue


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    for table, name in ((_BY_VERSION, "ss_base_model_version"), (_BY_ARCHITECTURE, "modelspec.architecture")):
        said = metadata.get(name, "").lower()
        found = next((family for start, family in table.items() if said.startswith(start)), None)
        if found:
            return found
    return "SD2" if metadata.get("ss_v2") == "True" else None
