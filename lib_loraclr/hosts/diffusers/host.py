"""A checkpoint in diffusers' models, as the core asks for it (`model/host.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from ...files import embedding_misfit, embeddings_by_name, other_names, vectors_per_encoder
from ...model import REFINER, SD1, Conditioning, Deltas, Layer, substituted
from .layers import model_layers
from .recognition import Kind
from .schedule import alphas_of
from .text_encoders import TextEncoder

#: the aesthetic scores that the WebUI tells the refiner, of a prompt and of a negative one
_SCORE, _NEGATIVE_SCORE = 6.0, 2.5


@dataclass(frozen=True)
class Parts:
    """What a checkpoint is loaded into.

    Attributes:
        latents: height and width of the latents by its configuration, or None
    """

    kind: Kind
    unet: UNet2DConditionModel
    text_encoders: tuple[TextEncoder, ...]
    vae: AutoencoderKL
    schedule: DDIMScheduler
    latents: int | None


class DiffusersHost:
    """A checkpoint of any family. Made by `load`.

    Prompts are encoded to a `context` `[b, 77, d]` and, for XL, what goes beside it: `pooled` `[b, p]` and `score` `[b]`,
    which only the refiner is told. As in the WebUI, an empty prompt is a negative one: XL reads zeros in its place, and
    the refiner is told a low score; other negative prompts have the score of a prompt.
    """

    name = "diffusers"
    weighs_words = False

    def __init__(self, checkpoint: str, parts: Parts) -> None:
        self.checkpoint, self.checkpoint_path = checkpoint, Path(checkpoint)
        self.family, self.inpainting = parts.kind.family, parts.kind.inpainting
        self.unet, self.vae, self.text_encoders = parts.unet, parts.vae, parts.text_encoders
        encoders = [encoder.model for encoder in parts.text_encoders]
        for model in (self.unet, self.vae, *encoders):
            model.requires_grad_(False).eval()
        self.device = self.unet.device
        self.latent_channels = self.vae.config.latent_channels
        self.pixels_per_latent = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.prediction_type = parts.schedule.config.prediction_type
        self.default_size = self.family.default_size(parts.latents, self.prediction_type)
        self.alphas_cumprod = alphas_of(parts.schedule)
        self._layers = model_layers(self.unet, *encoders, family=self.family)
        self.aliases: Mapping[str, str] = other_names(self._layers)
        self._is_xl = self.unet.config.addition_embed_type == "text_time"
        self._masked: dict[tuple[int, int], Tensor] = {}
        self.clip_skip = 1 if self.family is SD1 else 2

    @property
    def description(self) -> str:
        """What was loaded, for a person to check."""
        inpainting = " for inpainting" if self.inpainting else ""
        predicts = "velocities" if self.prediction_type == "v_prediction" else "noise"
        return f"{self.family.name}{inpainting}, predicts {predicts}, {self.default_size} pixels"

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def apply(self, deltas: Deltas) -> AbstractContextManager[None]:
        return substituted(self._layers, deltas, self.device)

    @contextmanager
    def knowing(self, embeddings: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
        widths = [encoder.table.weight.shape[1] for encoder in self.text_encoders]
        fitting = {name: vectors_per_encoder(parts, widths) for name, parts in embeddings_by_name(embeddings).items()}
        try:
            for place, encoder in enumerate(self.text_encoders):
                encoder.vectors.update((name, own[place].to(self.device)) for name, own in fitting.items() if own)
            yield tuple(embedding_misfit(name, self.checkpoint) for name, own in fitting.items() if own is None)
        finally:
            for encoder in self.text_encoders:
                encoder.vectors.clear()

    @contextmanager
    def skipping(self, clip_skip: int) -> Iterator[None]:
        before = self.clip_skip
        # of the others the WebUI reads the last layer but one whatever its setting says
        self.clip_skip = clip_skip if clip_skip and self.family is SD1 else before
        try:
            yield
        finally:
            self.clip_skip = before

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        # of the others the layer that is read is a part of the family
        skip = self.clip_skip if self.family is SD1 else 1
        encoded = [encoder(prompts, skip) for encoder in self.text_encoders]
        context = torch.cat([context for context, _ in encoded], dim=-1)
        if not self._is_xl:
            return Conditioning({"context": context})
        said = torch.tensor([bool(prompt) for prompt in prompts], device=self.device)
        pooled = encoded[-1][1]
        return Conditioning(
            {
                "context": torch.where(said[:, None, None], context, 0),
                "pooled": torch.where(said[:, None], pooled, 0),
                "score": torch.where(said, _SCORE, _NEGATIVE_SCORE),
            }
        )

    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        context = conditioning.tensors["context"].to(self.unet.dtype)
        if self.inpainting:
            x = torch.cat([x, self._all_masked(*x.shape[-2:]).to(x).expand(len(x), -1, -1, -1)], dim=1)
        told = self._told_beside(conditioning, *x.shape[-2:]) if self._is_xl else None
        return self.unet(x.to(self.unet.dtype), t.to(self.device), context, added_cond_kwargs=told).sample.float()

    def _told_beside(self, conditioning: Conditioning, height: int, width: int) -> dict[str, Tensor]:
        """XL's pooled text, the picture's size, that nothing was cropped, and again the size, or the refiner's score."""
        size = [height * self.pixels_per_latent, width * self.pixels_per_latent]
        scores = conditioning.tensors["score"].to(self.device)[:, None]
        numbers = torch.tensor([*size, 0.0, 0.0, *size], device=self.device).expand(len(scores), -1)
        if self.family is REFINER:
            numbers = torch.cat([numbers[:, :4], scores], dim=1)
        return {"text_embeds": conditioning.tensors["pooled"].to(self.unet.dtype), "time_ids": numbers}

    @torch.no_grad()
    def _all_masked(self, height: int, width: int) -> Tensor:
        """What an inpainting UNet reads beside the latents when all of a picture is to be drawn, `[1, 1 + c, h, w]`.

        A mask of ones, and the latents of what the mask leaves: grey, as in the WebUI's txt2img (and zeros before the
        VAE in diffusers' pipelines, which is the same grey). The WebUI draws those latents from the VAE's
        distribution; here its mean is taken, so that a merge can be repeated.
        """
        if (height, width) not in self._masked:
            grey = torch.zeros(1, 3, height * self.pixels_per_latent, width * self.pixels_per_latent)
            latents = self.vae.encode(grey.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
            latents = latents.float() * self.vae.config.scaling_factor
            self._masked[height, width] = torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
        return self._masked[height, width]

    def refinement_obstacle(self) -> None:
        return None

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        self.unet.enable_gradient_checkpointing()
        # diffusers recomputes only in training mode; these UNets have no dropout, so nothing else changes
        self.unet.train()
        try:
            yield
        finally:
            self.unet.eval()
            self.unet.disable_gradient_checkpointing()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        pictures = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        pixels = ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in pixels]
