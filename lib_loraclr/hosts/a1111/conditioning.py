"""Conditioning and denoising by the loaded checkpoint, as a generation in the WebUI does them.

A conditioning has `context` `[b, n, c]`, `length` `[b]` (rows of the context that are the prompt's own, a multiple of 77: the
WebUI gives long prompts more) and, for SDXL, `pooled` `[b, p]`. What SDXL is told of the picture's size is added when
the size is known, in `denoise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..base import Conditioning
from . import webui


def encode(model: nn.Module, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of `b` prompts, as `SdConditioning` gets it; with clip skip, emphasis and embeddings of the settings."""
    texts = [_final_text(prompt) for prompt in prompts]
    encoded: dict[str, Conditioning] = {}
    for group in _groups(model, sorted(set(texts))):
        conditioning = _learned(model, group)
        encoded.update((text, conditioning[place : place + 1]) for place, text in enumerate(group))
    return Conditioning.cat([encoded[text] for text in texts])


def denoise(model: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """The network's output for `b` noisy latents, `[b, c, h, w]`, fp32."""
    lengths = conditioning.tensors["length"]
    results, places = [], []
    for length in sorted(set(lengths.tolist())):
        rows = torch.nonzero(lengths == length).flatten()
        everyone = len(rows) == len(lengths)
        part = conditioning if everyone else conditioning[rows]
        results.append(_denoise(model, x if everyone else x[rows], t if everyone else t[rows], part, length))
        places.append(rows)
    if len(results) == 1:
        return results[0]
    return torch.cat(results)[torch.cat(places).argsort().to(x.device)]


def _denoise(model: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, length: int) -> Tensor:
    devices = webui.module("devices")
    context = conditioning.tensors["context"][:, :length]
    if model.is_sdxl:
        size = _size_embedding(model, x)
        vector = torch.cat([conditioning.tensors["pooled"], size.to(conditioning.tensors["pooled"])], dim=1)
        told = {"crossattn": context, "vector": vector}
    else:
        told = {"c_crossattn": [context]}
    with devices.autocast():
        return model.apply_model(x, t, told).float()


def _final_text(prompt: str) -> str:
    """What is encoded: no `<lora:…>` tags, and of an edited prompt (`[from:to:when]`) what it ends as."""
    text, _ = webui.module("extra_networks").parse_prompt(prompt)
    schedule = webui.module("prompt_parser").get_learned_conditioning_prompt_schedules([text], 1)[0]
    return schedule[-1][1]


def _groups(model: nn.Module, texts: Sequence[str]) -> Iterator[list[str]]:
    """Prompts that can be encoded together without one changing another.

    The WebUI encodes one prompt at a time: in a batch, emphasis is normalised by the mean of all, and all are as long as
    the longest. An empty prompt is a negative one, which SDXL replaces by zeros.
    """
    together = []
    for text in texts:
        [chunks], _ = model.cond_stage_model.process_texts([text])
        plain = len(chunks) == 1 and all(multiplier == 1.0 for multiplier in chunks[0].multipliers)
        if plain and text:
            together.append(text)
        else:
            yield [text]
    if together:
        yield together


def _learned(model: nn.Module, texts: list[str]) -> Conditioning:
    devices, parser = webui.module("devices"), webui.module("prompt_parser")
    batch = parser.SdConditioning(texts, is_negative_prompt=texts == [""])
    with devices.autocast(), _ThroughConditioner(model):
        learned = model.get_learned_conditioning(batch)
    context = learned["crossattn"] if model.is_sdxl else learned
    tensors = {"context": context, "length": torch.full((len(texts),), context.shape[1])}
    if model.is_sdxl:
        size = sum(_size_embedder_width(embedder) for embedder in _size_embedders(model))
        tensors["pooled"] = learned["vector"][:, : learned["vector"].shape[1] - size]
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
    """Columns of the vector that two numbers become."""
    return 2 * embedder.outdim


def _size_embedding(model: nn.Module, x: Tensor) -> Tensor:
    """What SDXL is told of the picture's size and crop, `[b, 6 · 256]`, as `modules/sd_models_xl.py` asks for it."""
    options, scale = webui.module("shared").opts, webui.module("processing").opt_f
    size = [x.shape[2] * scale, x.shape[3] * scale]
    numbers = {
        "original_size_as_tuple": size,
        "crop_coords_top_left": [options.sdxl_crop_top, options.sdxl_crop_left],
        "target_size_as_tuple": size,
    }
    embedded = []
    for embedder in _size_embedders(model):
        pair = torch.tensor(numbers[embedder.input_key], device=x.device, dtype=webui.module("devices").dtype)
        embedded.append(embedder(pair.repeat(len(x), 1)))
    return torch.cat(embedded, dim=1)
