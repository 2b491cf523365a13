"""Conditioning and denoising by the loaded checkpoint, as a generation in the WebUI does them.

A conditioning has `context` `[b, n, c]`, `length` `[b]` (rows of the context that are the prompt's own, a multiple of 77: the
WebUI gives long prompts more) and, for SDXL, `pooled` `[b, p]` and `score` `[b]`, the aesthetic score that the refiner is
told. What SDXL is told of the picture's size is added when the size is known, in `denoise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...model import Conditioning
from . import webui


def encode(model: nn.Module, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of `b` prompts, as `SdConditioning` gets it; with clip skip, emphasis and embeddings of the settings."""
    texts = [_final_text(prompt) for prompt in prompts]
    encoded: dict[str, Conditioning] = {}
    for group in _groups(model, sorted(set(texts))):
        conditioning = _learned(model, group)
        encoded.update((text, conditioning[place : place + 1]) for place, text in enumerate(group))
    return Conditioning.cat([encoded[text] for text in texts])


def denoise(model: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, masked: Tensor | None = None) -> Tensor:
    """The network's output for `b` noisy latents, `[b, c, h, w]`, fp32.

    Args:
        masked: what an inpainting UNet reads beside them, from `all_masked`
    """
    lengths = conditioning.tensors["length"]
    results, places = [], []
    for length in sorted(set(lengths.tolist())):
        rows = torch.nonzero(lengths == length).flatten()
        everyone = len(rows) == len(lengths)
        part = conditioning if everyone else conditioning[rows]
        told = _told(model, x if everyone else x[rows], part, length)
        if masked is not None:
            told["c_concat"] = [masked.expand(len(rows), -1, -1, -1)]
        results.append(_apply(model, x if everyone else x[rows], t if everyone else t[rows], told))
        places.append(rows)
    if len(results) == 1:
        return results[0]
    return torch.cat(results)[torch.cat(places).argsort().to(x.device)]


@torch.no_grad()
def all_masked(model: nn.Module, height: int, width: int) -> Tensor:
    """What the WebUI's txt2img gives an inpainting UNet beside latents of this size, `[1, 1 + c, height, width]`.

    A mask of ones, and the latents of grey. The WebUI draws them from the VAE's distribution; here always the same ones,
    so that a merge can be repeated.
    """
    devices, processing = webui.module("devices"), webui.module("processing")
    latents = torch.zeros(1, model.latent_channels, height, width, device=devices.device)
    with torch.random.fork_rng(), devices.autocast():
        torch.manual_seed(0)
        return processing.txt2img_image_conditioning(
            model, latents, width * processing.opt_f, height * processing.opt_f
        )


def _told(model: nn.Module, x: Tensor, conditioning: Conditioning, length: int) -> dict[str, Any]:
    """A conditioning as the model takes it."""
    context = conditioning.tensors["context"][:, :length]
    if not model.is_sdxl:
        return {"c_crossattn": [context]}
    pooled = conditioning.tensors["pooled"]
    size = _size_embedding(model, x, conditioning.tensors["score"])
    return {"crossattn": context, "vector": torch.cat([pooled, size.to(pooled)], dim=1)}


def _apply(model: nn.Module, x: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
    with webui.module("devices").autocast():
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
