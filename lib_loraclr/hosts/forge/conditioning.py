"""Conditioning and denoising by the loaded checkpoint, as a generation in Forge does them.

Forge's own `get_learned_conditioning` and `apply_model` run under `inference_mode`, or speak of sigmas: what they call is
called here.

A conditioning has `context` `[b, n, c]`, `length` `[b]` and, for SDXL, `pooled` `[b, p]` and `score` `[b]`, the aesthetic score
that the refiner is told. What SDXL is told of the picture's size is added when the size is known, in `denoise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...model import REFINER, Conditioning, Family
from .. import webui
from . import engine


def encode(model: Any, family: Family, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of `b` prompts; with clip skip, emphasis and embeddings of the settings."""
    engines = engine.text_engines(model)
    device = model.forge_objects_original.unet.load_device

    def learned(texts: list[str]) -> Conditioning:
        tensors = _read(engines, texts)
        tensors["length"] = torch.full((len(texts),), tensors["context"].shape[1])
        if family.compvis_unet:  # SDXL and its refiner
            options, negative = webui.module("shared").opts, texts == [""]
            # a setting in Forge Neo
            if negative and getattr(options, "sdxl_zero_neg", True):
                tensors["context"], tensors["pooled"] = (torch.zeros_like(tensors[n]) for n in ("context", "pooled"))
            score = options.sdxl_refiner_low_aesthetic_score if negative else options.sdxl_refiner_high_aesthetic_score
            tensors["score"] = torch.full((len(texts),), float(score))
        else:
            tensors.pop("pooled", None)
        return Conditioning(
            {name: tensor if name == "length" else tensor.to(device) for name, tensor in tensors.items()}
        )

    return webui.encode(prompts, next(iter(engines.values())), learned)


def _read(engines: dict[str, Any], texts: list[str]) -> dict[str, Tensor]:
    """What the text encoders make of prompts: their contexts side by side, and the last one's pooled vector."""
    contexts, tensors = [], {}
    for reader in engines.values():
        found = reader(texts)
        if isinstance(found, tuple):
            found, tensors["pooled"] = found
        contexts.append(found)
    return {**tensors, "context": torch.cat(contexts, dim=2)}


def denoise(
    model: Any,
    x: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    *,
    vector: Callable[[Tensor, Conditioning], Tensor] | None = None,
    masked: Tensor | None = None,
) -> Tensor:
    """The network's output for `b` noisy latents, `[b, c, h, w]`, fp32.

    Args:
        vector: what SDXL is told beside the context, for latents of a size; None of another family
        masked: what an inpainting UNet reads beside them, from `webui.all_masked`
    """
    kind = engine.computation_dtype(model)

    def run(x: Tensor, t: Tensor, part: Conditioning) -> Tensor:
        read = x if masked is None else torch.cat([x, masked.to(x).expand(len(x), -1, -1, -1)], dim=1)
        told = {"context": part.tensors["context"].to(kind)}
        if vector is not None:
            told["y"] = vector(x, part).to(kind)
        # the model writes into the options
        return engine.unet(model)(read.to(kind), t.float(), transformer_options={}, **told).float()

    return webui.denoise(x, t, conditioning, run)


def size_vector(model: Any, family: Family, x: Tensor, conditioning: Conditioning) -> Tensor:
    """The prompt's pooled vector and what SDXL is told of the picture's size and crop, `[b, p + 6 · 256]`, in the order of
    `backend/diffusion_engine/sdxl.py`; the refiner of its size, crop and score, `[b, p + 5 · 256]`."""
    options, scale = webui.module("shared").opts, webui.module("processing").opt_f
    size = [x.shape[2] * scale, x.shape[3] * scale]
    numbers = torch.tensor([*size, options.sdxl_crop_top, options.sdxl_crop_left, *size], dtype=torch.float32)
    rows = numbers.to(x.device).repeat(len(x), 1)
    if family is REFINER:
        rows = torch.cat([rows[:, :4], conditioning.tensors["score"].to(rows)[:, None]], dim=1)
    pooled = conditioning.tensors["pooled"]
    return torch.cat([pooled, model.embedder(rows.flatten()).reshape(len(x), -1).to(pooled)], dim=1)


@contextmanager
def as_the_next_picture(model: Any) -> Iterator[None]:
    """Prompts read as the next picture's will be, and nothing of it left for that one's infotext."""
    with _settings_clip_skip(model), _infotext_untouched():
        yield


@contextmanager
def _settings_clip_skip(model: Any) -> Iterator[None]:
    """Prompts read as the next picture's will be; Forge tells the model the setting only when it makes one."""
    readers = engine.text_engines(model).values()
    before = [reader.clip_skip for reader in readers]
    model.set_clip_skip(int(webui.module("shared").opts.CLIP_stop_at_last_layers))
    try:
        yield
    finally:
        for reader, skip in zip(readers, before, strict=True):
            reader.clip_skip = skip


@contextmanager
def _infotext_untouched() -> Iterator[None]:
    """What encoding prompts leaves for the next picture's infotext is taken back."""
    reader = engine.loaded("text_processing.classic_engine")
    notes = getattr(reader, "last_extra_generation_params", None)
    if notes is None:  # Forge Neo keeps them elsewhere
        notes = getattr(getattr(engine.loaded("args"), "dynamic_args", None), "last_extra_generation_params", None)
    before = dict(notes) if notes is not None else {}
    try:
        yield
    finally:
        if notes is not None:
            notes.clear()
            notes.update(before)
