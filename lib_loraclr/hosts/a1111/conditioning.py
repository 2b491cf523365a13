"""Conditioning and denoising by the loaded checkpoint, as a generation in the WebUI does them.

A conditioning has `context` `[b, n, c]`, `length` `[b]` and, for SDXL, `pooled` `[b, p]` and `score` `[b]`, the aesthetic score
that the refiner is told. What SDXL is told of the picture's size is added when the size is known, in `denoise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...model import Conditioning
from .. import webui


def encode(model: nn.Module, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of `b` prompts, as `SdConditioning` gets it; with clip skip, emphasis and embeddings of the settings."""
    return webui.encode(prompts, model.cond_stage_model, lambda texts: _learned(model, texts))


def denoise(model: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, masked: Tensor | None = None) -> Tensor:
    """The network's output for `b` noisy latents, `[b, c, h, w]`, fp32.

    Args:
        masked: what an inpainting UNet reads beside them, from `webui.all_masked`
    """

    def run(x: Tensor, t: Tensor, part: Conditioning) -> Tensor:
        told = _told(model, x, part)
        if masked is not None:
            told["c_concat"] = [masked.expand(len(x), -1, -1, -1)]
        return _apply(model, x, t, told)

    return webui.denoise(x, t, conditioning, run)


def _told(model: nn.Module, x: Tensor, conditioning: Conditioning) -> dict[str, Any]:
    """A conditioning as the model takes it."""
    context = conditioning.tensors["context"]
    if not model.is_sdxl:
        return {"c_crossattn": [context]}
    pooled = conditioning.tensors["pooled"]
    size = _size_embedding(model, x, conditioning.tensors["score"])
    return {"crossattn": context, "vector": torch.cat([pooled, size.to(pooled)], dim=1)}


def _apply(model: nn.Module, x: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
    with webui.module("devices").autocast():
        return model.apply_model(x, t, told).float()


def _learned(model: nn.Module, texts: list[str]) -> Conditioning:
    devices, parser = webui.module("devices"), webui.module("prompt_parser")
    negative = texts == [""]
    batch = parser.SdConditioning(texts, is_negative_prompt=negative)
    with devices.autocast(), _ThroughConditioner(model):
        learned = model.get_learned_conditioning(batch)
    context = learned["crossattn"] if model.is_sdxl else learned
    tensors = {"context": context, "length": torch.full((len(texts),), context.shape[1])}
    if model.is_sdxl:
        size = sum(_size_embedder_width(embedder) for embedder in _size_embedders(model))
        tensors["pooled"] = learned["vector"][:, : learned["vector"].shape[1] - size]
        options = webui.module("shared").opts
        score = options.sdxl_refiner_low_aesthetic_score if negative else options.sdxl_refiner_high_aesthetic_score
        tensors["score"] = torch.full((len(texts),), float(score))
    return Conditioning(tensors)


class _ThroughConditioner:
    """Lets gradients through SDXL's conditioner, which runs every embedder that is not trainable under `no_grad`."""

    def __init__(self, model: nn.Module) -> None:
        asked = model.is_sdxl and torch.is_grad_enabled()
        embedders = model.conditioner.embedders if asked else ()
        self._changed = [e for e in embedders if hasattr(e, "wrapped") and not e.is_trainable]

    def __enter__(self) -> None:
        for embedder in self._changed:
            embedder.is_trainable = True

    def __exit__(self, *_: object) -> None:
        for embedder in self._changed:
            embedder.is_trainable = False


def _size_embedders(model: nn.Module) -> list[nn.Module]:
    return [embedder for embedder in model.conditioner.embedders if not hasattr(embedder, "wrapped")]


def _size_embedder_width(embedder: nn.Module) -> int:
    """Columns of the vector that its numbers become: two, or one score."""
    return (1 if embedder.input_key == "aesthetic_score" else 2) * embedder.outdim


def _size_embedding(model: nn.Module, x: Tensor, scores: Tensor) -> Tensor:
    """What SDXL is told of the picture's size and crop, `[b, 6 · 256]`, as `modules/sd_models_xl.py` asks for it; the refiner
    of its size, crop and score, `[b, 5 · 256]`."""
    options, scale = webui.module("shared").opts, webui.module("processing").opt_f
    size = [x.shape[2] * scale, x.shape[3] * scale]
    numbers = {
        "original_size_as_tuple": size,
        "crop_coords_top_left": [options.sdxl_crop_top, options.sdxl_crop_left],
        "target_size_as_tuple": size,
    }
    kind = {"device": x.device, "dtype": webui.module("devices").dtype}
    told = {name: torch.tensor(pair, **kind).repeat(len(x), 1) for name, pair in numbers.items()}
    told["aesthetic_score"] = scores.to(**kind)[:, None]
    return torch.cat([embedder(told[embedder.input_key]) for embedder in _size_embedders(model)], dim=1)
