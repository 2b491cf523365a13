"""The models of the stand-in of the WebUI (webui_stand_in.py): SD1's, XL's and its refiner's, of a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8


class BasicTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.Module()
        self.attn1.to_q = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.attn1.to_q(x)) + context.mean(1, keepdim=True)


class _UNet(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = channels
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(channels, WIDTH, 3, padding=1)]),
                nn.ModuleList([nn.Identity(), BasicTransformerBlock()]),
            ]
        )
        self.out = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        x = self.input_blocks[0][0](x)
        rows = self.input_blocks[1][1](x.flatten(2).mT, context=context)
        return self.out(rows.mT.reshape(x.shape)) + 0.001 * t[:, None, None, None]


class _TextModel(nn.Module):
    """`multipliers` and `chunks` of a prompt: one chunk per 75 words, 1.3 for words in brackets."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.is_trainable = False
        self.input_key = "txt"
        self.calls: list[list[str]] = []

    def process_texts(self, texts: Sequence[str]) -> tuple[list[list[Any]], int]:
        chunks = [
            [SimpleNamespace(multipliers=[1.3 if "(" in text else 1.0])] * (1 + len(text.split()) // 76)
            for text in texts
        ]
        return chunks, 0

    def tokens(self, texts: Sequence[str]) -> Tensor:
        self.calls.append(list(texts))
        rows = 77 * max(len(chunks) for chunks in self.process_texts(texts)[0])
        codes = [[ord(letter) % 256 for letter in text[:rows].ljust(rows)] for text in texts]
        return self.embedding(torch.tensor(codes))


class Clip(_TextModel):
    """SD1's: transformers' CLIP, with projections of their own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Module()
        layer.self_attn = nn.Module()
        layer.self_attn.q_proj = nn.Linear(WIDTH, WIDTH)
        self.wrapped = nn.Module()
        self.wrapped.transformer = nn.Module()
        self.wrapped.transformer.text_model = nn.Module()
        self.wrapped.transformer.text_model.encoder = nn.Module()
        self.wrapped.transformer.text_model.encoder.layers = nn.ModuleList([layer])

    def forward(self, texts: Sequence[str]) -> Tensor:
        return self.wrapped.transformer.text_model.encoder.layers[0].self_attn.q_proj(self.tokens(texts))


class _OpenClip(_TextModel):
    """SDXL's second: packed projections."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.attn = nn.MultiheadAttention(WIDTH, 2)
        block.mlp = nn.Module()
        block.mlp.c_fc = nn.Linear(WIDTH, WIDTH)
        self.wrapped = nn.Module()
        self.wrapped.model = nn.Module()
        self.wrapped.model.transformer = nn.Module()
        self.wrapped.model.transformer.resblocks = nn.ModuleList([block])

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        block = self.wrapped.model.transformer.resblocks[0]
        x = self.tokens(texts).transpose(0, 1)
        x = x + block.attn(x, key=x, value=x, need_weights=False)[0]
        x = block.mlp.c_fc(x).transpose(0, 1)
        return x, x[:, 0]


class _Size(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.input_key, self.outdim, self.is_trainable = key, 3, False

    def forward(self, numbers: Tensor) -> Tensor:
        return (numbers[:, :, None] * torch.tensor([1.0, 0.5, 0.25])).flatten(1) / 1000


class _Conditioner(nn.Module):
    def __init__(self, *, refiner: bool) -> None:
        super().__init__()
        last = "aesthetic_score" if refiner else "target_size_as_tuple"
        encoders = [_OpenClip()] if refiner else [Clip(), _OpenClip()]
        keys = ("original_size_as_tuple", "crop_coords_top_left", last)
        self.embedders = nn.ModuleList([*encoders, *map(_Size, keys)])
        self.wrapped = nn.Module()

    def process_texts(self, texts: Sequence[str]) -> Any:
        return self.embedders[0].process_texts(texts)


class Model(nn.Module):
    """What `shared.sd_model` is."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        sdxl = kind in ("SDXL", "SDXL refiner")
        self.is_sd1, self.is_sd2, self.is_sdxl, self.is_sd3 = not sdxl, False, sdxl, False
        self.parameterization, self.latent_channels, self.lowvram = "eps", 4, False
        self.first_stage_model = nn.Linear(1, 1).half()
        self.sd_checkpoint_info = SimpleNamespace(title="tiny.safetensors [0123456789]", filename="tiny.safetensors")
        self.alphas_cumprod_original = torch.linspace(0.999, 0.005, 1000)
        self.register_buffer("alphas_cumprod", self.alphas_cumprod_original.clone())
        self.model = nn.Module()
        self.model.diffusion_model = _UNet(channels)
        if sdxl:
            self.conditioner = _Conditioner(refiner=kind == "SDXL refiner")
            self.cond_stage_model = self.conditioner
        else:
            self.image_size = 16
            self.cond_stage_model = Clip()
        self.eval()

    def get_learned_conditioning(self, texts: Any) -> Any:
        if not self.is_sdxl:
            return self.cond_stage_model(texts)
        contexts, vectors = [], []
        for embedder in self.conditioner.embedders:
            if isinstance(embedder, _Size):
                numbers = 1 if embedder.input_key == "aesthetic_score" else 2
                vectors.append(embedder(torch.full((len(texts), numbers), 1024.0)))
                continue
            with nullcontext() if embedder.is_trainable else torch.no_grad():
                encoded = embedder(texts)
            kept = 0 if texts.is_negative_prompt and not any(texts) else 1
            context, *pooled = encoded if isinstance(encoded, tuple) else (encoded,)
            contexts.append(context * kept)
            vectors += [vector * kept for vector in pooled]
        return {"crossattn": torch.cat(contexts, dim=2), "vector": torch.cat(vectors, dim=1)}

    def apply_model(self, x: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        if self.is_sdxl:
            context = sum(told["crossattn"].split(WIDTH, dim=-1)) + told["vector"].sum(1)[:, None, None]
        else:
            context = told["c_crossattn"][0]
        return self.model.diffusion_model(torch.cat([x, *told.get("c_concat", [])], dim=1), t, context)
