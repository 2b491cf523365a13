"""Prompts read by the code of AUTOMATIC1111's WebUI, which reForge has kept: its text encoders, their embeddings, XL's sizes.

A conditioning has `context` `[b, n, c]`, `length` `[b]` and, for SDXL, `pooled` `[b, p]` and `score` `[b]`, the aesthetic score
that the refiner is told. What SDXL is told of the picture's size is added when the size is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...files import embedding_misfit, embeddings_by_name
from ...model import Conditioning
from . import modules
from .conditioning import encode


def read(model: nn.Module, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of `b` prompts, as `SdConditioning` gets it; with clip skip, emphasis and embeddings of the settings.

    Args:
        model: `shared.sd_model`
    """
    return encode(prompts, model.cond_stage_model, lambda texts: _learned(model, texts))


def _learned(model: nn.Module, texts: list[str]) -> Conditioning:
    devices, parser = modules.module("devices"), modules.module("prompt_parser")
    negative = texts == [""]
    batch = parser.SdConditioning(texts, is_negative_prompt=negative)
    with devices.autocast(), _ThroughConditioner(model):
        learned = model.get_learned_conditioning(batch)
    context = learned["crossattn"] if model.is_sdxl else learned
    tensors = {"context": context, "length": torch.full((len(texts),), context.shape[1])}
    if model.is_sdxl:
        size = sum(_size_embedder_width(embedder) for embedder in _size_embedders(model))
        tensors["pooled"] = learned["vector"][:, : learned["vector"].shape[1] - size]
        options = modules.module("shared").opts
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


def size_vector(model: nn.Module, x: Tensor, conditioning: Conditioning) -> Tensor:
    """The prompt's pooled vector and what SDXL is told of the picture's size and crop, `[b, p + 6 · 256]`, as
    `modules/sd_models_xl.py` asks for it; the refiner of its size, crop and score, `[b, p + 5 · 256]`.

    Args:
        x: latents of that size, `[b, c, h, w]`
    """
    options, scale = modules.module("shared").opts, modules.module("processing").opt_f
    size = [x.shape[2] * scale, x.shape[3] * scale]
    numbers = {
        "original_size_as_tuple": size,
        "crop_coords_top_left": [options.sdxl_crop_top, options.sdxl_crop_left],
        "target_size_as_tuple": size,
    }
    kind = {"device": x.device, "dtype": modules.module("devices").dtype}
    told = {name: torch.tensor(pair, **kind).repeat(len(x), 1) for name, pair in numbers.items()}
    told["aesthetic_score"] = conditioning.tensors["score"].to(**kind)[:, None]
    embedded = torch.cat([embedder(told[embedder.input_key]) for embedder in _size_embedders(model)], dim=1)
    pooled = conditioning.tensors["pooled"]
    return torch.cat([pooled, embedded.to(pooled)], dim=1)


@contextmanager
def bundled_embeddings(
    model: nn.Module, tensors: Mapping[str, Tensor], checkpoint: str
) -> Iterator[tuple[list[str], list[str]]]:
    """Embeddings that LoRAs bundle, registered for a while as the WebUI registers them while such a LoRA is active; like it, this
    leaves an installed one of the same name in its place.

    Returns:
        the names that prompts call them by, and warnings of those that they do not call
    """
    database = modules.module("sd_hijack").model_hijack.embedding_db
    make = modules.module("textual_inversion.textual_inversion").create_embedding_from_data
    warnings, registered = [], []
    try:
        for name, parts in embeddings_by_name(tensors).items():
            embedding = make(dict(parts), name)
            if name in database.word_embeddings:
                warnings.append(
                    f"An embedding {name} is installed, and prompts call it in place of the bundled one, now and later: "
                    "rename or remove the installed one if that is not meant."
                )
            elif database.expected_shape not in (-1, embedding.shape):
                warnings.append(embedding_misfit(name, checkpoint))
            else:
                registered.append(name)
                database.register_embedding(embedding, model)
        yield registered, warnings
    finally:
        for name in registered:
            database.register_embedding_by_name(None, model, name)


@contextmanager
def infotext_untouched() -> Iterator[None]:
    """What reading prompts leaves for the next picture's infotext is taken back."""
    hijack = modules.module("sd_hijack").model_hijack
    comments, parameters, fixes = list(hijack.comments), dict(hijack.extra_generation_params), hijack.fixes
    try:
        yield
    finally:
        hijack.comments, hijack.extra_generation_params, hijack.fixes = comments, parameters, fixes
