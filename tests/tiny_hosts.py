"""The tiny checkpoints in the stand-alone host: opened, asked, and given LoRAs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from lib_loraclr.hosts.diffusers import DiffusersHost, load
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Tiny

Open = Callable[[Tiny], DiffusersHost]
ADAPTED = re.compile(r"lora_te|_attn[12]_to_|_ff_net_|_proj_(in|out)$|conv|layers_[23]$|skip|_op$")


def opener(folder: Path) -> Open:
    """Loads a kind of checkpoint, each once.

    Args:
        folder: where the files are written
    """
    hosts: dict[str, DiffusersHost] = {}

    def open_(kind: Tiny) -> DiffusersHost:
        if kind.name not in hosts:
            path = kind.write(folder)
            if kind.velocity:
                path.with_suffix(".yaml").write_text(tiny.velocity_yaml(kind), "utf-8")
            hosts[kind.name] = load(path)
        return hosts[kind.name]

    return open_


def predict(host: DiffusersHost, *prompts: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(prompts), 4, 8, 8, generator=generator)
    return host.denoise(x, torch.full((len(prompts),), 500), host.encode(prompts))


def random_lora(path: Path, host: DiffusersHost, *, seed: int, size: float = 0.3) -> Path:
    """A LoRA of rank 2 on every layer that trainers adapt, `size` times as large as the checkpoint's random weights."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for key, layer in host.layers().items():
        if ADAPTED.search(key) and not layer.is_vector:
            d_out, *d_in = layer.weight.shape
            ones = (1,) * (len(d_in) - 1)
            tensors[f"{key}.lora_up.weight"] = torch.randn(d_out, 2, *ones, generator=generator) * size
            down = torch.randn(2, *d_in, generator=generator)
            tensors[f"{key}.lora_down.weight"] = down / down[0].numel() ** 0.5
    save_file(tensors, path, {"modelspec.trigger_phrase": f"word{seed}"})
    return path


def random_merge(folder: Path, host: DiffusersHost, *seeds: int, **changes: Any) -> MergeRequest:
    """A merge of random LoRAs, which have their seeds as names, with as little recording as makes sense."""
    paths = [folder / f"{seed}.safetensors" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        if not path.exists():
            random_lora(path, host, seed=seed)
    concepts = tuple(Concept(str(path), trigger=f"word{path.stem}") for path in paths)
    recording = RecordingOptions(paths=1, steps=4, renoised=2, guidance=4.0, height=64, width=64)
    options = {"steps": 4, "batch_size": 2, "scenes": 2, "learning_rate": 0.002}
    return replace(MergeRequest(concepts, options=options, recording=recording), **changes)


def pipeline(host: DiffusersHost) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """diffusers' own pipeline around the loaded models."""
    *first, last = host.text_encoders
    host.unet.register_to_config(sample_size=host.default_size // 8)  # the pipelines ask for it
    parts = {"vae": host.vae, "unet": host.unet, "scheduler": DDIMScheduler(clip_sample=False)}
    if not host.family.compvis_unet:
        safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(text_encoder=last.model, tokenizer=last.tokenizer, **parts, **safety)
    return StableDiffusionXLPipeline(
        text_encoder=first[0].model if first else None,
        tokenizer=first[0].tokenizer if first else None,
        text_encoder_2=last.model,
        tokenizer_2=last.tokenizer,
        add_watermarker=False,
        **parts,
    )


def widths(host: DiffusersHost) -> list[int]:
    return [encoder.table.weight.shape[1] for encoder in host.text_encoders]


def random_embedding(host: DiffusersHost, name: str, vectors: int, seed: int = 0) -> dict[str, Tensor]:
    """One that fits, by its keys in a file."""
    generator = torch.Generator().manual_seed(seed)
    parts = ("clip_l", "clip_g") if len(widths(host)) == 2 else ("string_to_param.*",)
    return {
        f"bundle_emb.{name}.{part}": torch.randn(vectors, width, generator=generator)
        for part, width in zip(parts, widths(host), strict=True)
    }
