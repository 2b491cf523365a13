"""The family of models that a LoRA was made for: by its tensors, and by its metadata where those leave it open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .deltas import kind_of
from .layer_keys import TEXT_ENCODERS, UNET, is_text_encoder, split_key
from .lora_files import LoraFile
from .tensor_files import StoredTensor, read_header

#: parts of names of layers that only other families have
_FOREIGN = {
    "double_blocks": "Flux",
    "single_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "joint_blocks": "SD3",
    "context_embedder": "SD3",
    f"{UNET}transformer_transformer_blocks": "SD3 or Flux",
}
#: what cross-attention reads
_BY_CONTEXT = {768: "SD1", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
#: the width of a text encoder; SDXL's first one is SD1's
_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2", 1280: "SDXL"}
_BY_VERSION = {"sd_v1": "SD1", "sd_v2": "SD2", "sdxl_": "SDXL"}
_BY_ARCHITECTURE = {
    "stable-diffusion-v1": "SD1",
    "stable-diffusion-v2": "SD2",
    "stable-diffusion-xl": "SDXL",
    "stable-diffusion-3": "SD3",
    "flux": "Flux",
}


def family_of(file: LoraFile) -> str | None:
    """SD1, SD2, SDXL, SDXL refiner (`model.Family.name`) or a family that cannot be merged; None where nothing tells."""
    return family_by_tensors(file.layers) or _by_metadata(file.metadata) or ("SDXL" if _of_sdxl(file.layers) else None)


def family_by_header(path: Path) -> str | None:
    """The family by names and shapes, of a file whose tensors are left where they are.

    Raises:
        LoraclrError: it cannot be read as safetensors
    """
    tensors = read_header(path).tensors
    # Cross-attention tells nearly always, and is a small part of a large file.
    telling = [tensor for tensor in tensors if re.search(r"attn2.to_[kv]", tensor.name)]
    return family_by_tensors(_shapes(telling)) or family_by_tensors(_shapes(tensors))


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
    for part, family in _FOREIGN.items():
        if any(part in key for key in layers):
            return family
    contexts = {width for key, _, width in _sides(layers) if re.search(r"_attn2_to_[kv]$", key)}
    by_context = {_BY_CONTEXT[width] for width in contexts if width in _BY_CONTEXT}
    if len(by_context) == 1:
        return by_context.pop()
    if _of_sdxl(layers):
        # the refiner has SDXL's second text encoder alone, and four transformer blocks to an attention
        both = any(key.startswith(TEXT_ENCODERS[1]) for key in layers)
        return "SDXL" if both or any(re.search(r"_transformer_blocks_[4-9]", key) for key in layers) else None
    return _by_text_encoder(layers)


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
        for start, family in table.items():
            if metadata.get(name, "").lower().startswith(start):
                return family
    return "SD2" if metadata.get("ss_v2") == "True" else None
