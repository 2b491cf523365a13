"""Denoising by the loaded checkpoint, as a generation in the WebUI does it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...model import Conditioning
from .. import webui


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
    return {"crossattn": context, "vector": webui.size_vector(model, x, conditioning)}


def _apply(model: nn.Module, x: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
    with webui.module("devices").autocast():
        return model.apply_model(x, t, told).float()
