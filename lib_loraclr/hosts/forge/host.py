"""The checkpoint that Forge has loaded, or Forge Neo, as the core asks for it (`model/host.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import LoraclrError
from ...model import INPAINTING_CHANNELS, SD1, SD2, Conditioning, Deltas, Layer, substituted
from .. import webui
from . import conditioning, engine, gradients
from .embeddings import known
from .layers import family_of, model_layers


class ForgeHost:
    """The loaded checkpoint. Made by `session`, which also sees to it that the base weights are in place; or by `peek`, to be
    looked at and not run.

    Attributes:
        aliases: names that files have for a layer besides its key -> layer key
    """

    name = "forge"
    weighs_words = True
    #: a context in which prompts are read as the next picture's will be, given the model
    reading = staticmethod(conditioning.as_the_next_picture)

    def __init__(self, model: Any, thawed: gradients.Thawed | None = None) -> None:
        """
        Args:
            model: Forge's engine with the checkpoint
            thawed: the session's hold of its parameters; None of one that is not to be run

        Raises:
            LoraclrError: LoRAs of this kind of checkpoint cannot be merged
        """
        objects = model.forge_objects_original
        self.model, self._thawed = model, thawed
        self.family = family_of(model)
        self.checkpoint = model.sd_checkpoint_info.title
        self.checkpoint_path = Path(model.sd_checkpoint_info.filename)
        self.device: torch.device = objects.unet.load_device
        self.latent_channels: int = objects.vae.latent_channels
        self.pixels_per_latent: int = webui.module("processing").opt_f
        self.prediction_type = engine.prediction_type(model)
        self.default_size: int = self.family.default_size(None, self.prediction_type)
        self.inpainting = engine.unet(model).in_channels == INPAINTING_CHANNELS
        self.alphas_cumprod = _alphas_cumprod(model)
        self._layers, self.aliases = model_layers(model, self.family)
        self._masked: dict[tuple[int, int], Tensor] = {}

    def refinement_obstacle(self) -> str | None:
        parts = (engine.unet(self.model), engine.text_encoders(self.model))
        devices = {parameter.device.type for part in parts for parameter in part.parameters()}
        if devices != {self.device.type}:
            return (
                "The WebUI keeps parts of the checkpoint off the card while it runs, and a backward pass needs them all: use "
                "effort layers, or leave it more memory (in Forge by GPU Weights at the top; or start without --always-low-vram "
                "and the like)."
            )
        return None

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def apply(self, deltas: Deltas) -> AbstractContextManager[None]:
        return substituted(self._layers, deltas, self.device)

    def knowing(self, embeddings: Mapping[str, Tensor]) -> AbstractContextManager[tuple[str, ...]]:
        return known(self.model, embeddings, self.checkpoint)

    @property
    def clip_skip(self) -> int:
        """The WebUI's setting; in Forge it counts for SDXL too, from 2 on."""
        setting = int(webui.module("shared").opts.CLIP_stop_at_last_layers)
        return setting if self.family in (SD1, SD2) else max(2, setting)

    def skipping(self, clip_skip: int) -> AbstractContextManager[None]:
        return nullcontext()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return conditioning.encode(self.model, self.family, prompts)

    def denoise(self, x: Tensor, t: Tensor, conditioned: Conditioning) -> Tensor:
        masked = self._all_masked(x) if self.inpainting else None
        vector = self._size_vector if self.family.compvis_unet else None  # SDXL and its refiner
        return conditioning.denoise(self.model, x, t, conditioned, vector=vector, masked=masked)

    def _size_vector(self, x: Tensor, conditioned: Conditioning) -> Tensor:
        return conditioning.size_vector(self.model, self.family, x, conditioned)

    def _all_masked(self, x: Tensor) -> Tensor:
        """What an inpainting UNet reads beside latents of this size when all of the picture is to be drawn."""
        size = x.shape[2], x.shape[3]
        if size not in self._masked:
            with self._engines_own():
                made = webui.all_masked(self.model, self.latent_channels, *size, self.device)
            # made under `inference_mode`, of which autograd saves nothing
            self._masked[size] = made[:1].clone()
        return self._masked[size]

    def recomputing(self) -> AbstractContextManager[None]:
        return gradients.recomputing(engine.unet(self.model))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures by the WebUI's VAE.

        Raises:
            LoraclrError: not a number came out, which half precision makes of some VAEs
        """
        with self._engines_own():
            decoded = torch.cat([self.model.decode_first_stage(one[None].to(self.device)).cpu() for one in latents])
        pictures = decoded.float().add(1).div(2).clamp(0, 1)
        if not pictures.isfinite().all():
            raise LoraclrError(
                "No picture could be made: the VAE put out values that are not numbers; start the WebUI with --vae-in-fp32, or "
                "choose another VAE."
            )
        return [Image.fromarray((255.0 * np.moveaxis(p.numpy(), 0, 2)).astype(np.uint8)) for p in pictures]

    def _engines_own(self) -> AbstractContextManager[None]:
        """Inside, Forge may load and move models; UNet and text encoders are back in place after it."""
        return nullcontext() if self._thawed is None else self._thawed.frozen()


def _alphas_cumprod(model: Any) -> Tensor:
    """As pictures are made by: with zero terminal SNR where the checkpoint or the setting has it (`modules/processing.py`)."""
    sigmas, setting = engine.sigmas(model), getattr(webui.module("shared").opts, "sd_noise_schedule", "")
    # in reForge the model itself has it
    trained = getattr(getattr(model, "model_config", model), "ztsnr", False)
    if setting == "Zero Terminal SNR" or trained:
        sigmas = engine.module("modules.k_prediction").rescale_zero_terminal_snr_sigmas(sigmas)
    return 1 / (sigmas.square() + 1)
