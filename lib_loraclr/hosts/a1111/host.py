"""The checkpoint that the WebUI has loaded, as the core asks for it (`model/host.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...errors import LoraclrError
from ...model import SD1, Conditioning, Deltas, Layer, substituted
from .. import webui
from . import conditioning
from .layers import family_of, is_inpainting, model_layers

#: blocks of ldm's and sgm's UNets whose activations are worth recomputing
_BLOCKS = {"BasicTransformerBlock", "ResBlock", "AttentionBlock"}


class A1111Host:
    """The loaded checkpoint. Made by `session`, which also sees to it that the base weights are in place; or by `peek`, to be
    looked at and not run.

    Attributes:
        aliases: names that files have for a layer besides its key -> layer key
    """

    name = "a1111"
    weighs_words = True

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: `shared.sd_model`

        Raises:
            LoraclrError: LoRAs of this kind of checkpoint cannot be merged
        """
        devices = webui.module("devices")
        self.model = model
        self.family = family_of(model)
        self.checkpoint = model.sd_checkpoint_info.title
        self.checkpoint_path = Path(model.sd_checkpoint_info.filename)
        self.device: torch.device = devices.device
        self.latent_channels: int = model.latent_channels
        self.pixels_per_latent: int = webui.module("processing").opt_f
        self.prediction_type = "v_prediction" if model.parameterization == "v" else "epsilon"
        self.default_size: int = self.family.default_size(self._configured_latents(), self.prediction_type)
        self.inpainting = is_inpainting(model)
        self.alphas_cumprod = model.alphas_cumprod.detach().float().cpu()
        self._layers, self.aliases = model_layers(model, self.family)
        self._masked: dict[tuple[int, int], Tensor] = {}

    def _configured_latents(self) -> int | None:
        """Height and width of the latents where the checkpoint's configuration says them (ldm's does)."""
        latents = getattr(self.model, "image_size", None)
        return latents if isinstance(latents, int) else None

    def refinement_obstacle(self) -> str | None:
        if self.model.lowvram and self.device.type != "cpu":
            return (
                "--medvram and --lowvram move parts of the model off the card while it runs, and a backward pass needs them "
                "all: use effort layers, or start the WebUI without that option."
            )
        return None

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def apply(self, deltas: Deltas) -> AbstractContextManager[None]:
        """The model with these deltas added to its weights, next to the WebUI's own patched forwards.

        Those change nothing as long as `networks.loaded_networks` is empty, whatever `lora_functional` says.
        """
        return substituted(self._layers, deltas, self.device)

    @contextmanager
    def knowing(self, embeddings: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
        with webui.bundled_embeddings(self.model, embeddings, self.checkpoint) as (_, warnings):
            yield tuple(warnings)

    @property
    def clip_skip(self) -> int:
        """The WebUI's setting, which all that is drawn here goes by; of other families than SD1 it changes nothing."""
        return int(webui.module("shared").opts.CLIP_stop_at_last_layers) if self.family is SD1 else 2

    def skipping(self, clip_skip: int) -> AbstractContextManager[None]:
        return nullcontext()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return webui.read(self.model, prompts)

    def denoise(self, x: Tensor, t: Tensor, conditioned: Conditioning) -> Tensor:
        return conditioning.denoise(self.model, x, t, conditioned, self._all_masked(x) if self.inpainting else None)

    def _all_masked(self, x: Tensor) -> Tensor:
        """What an inpainting UNet reads beside latents of this size when all of the picture is to be drawn."""
        size = x.shape[2], x.shape[3]
        if size not in self._masked:
            self._masked[size] = webui.all_masked(self.model, self.latent_channels, *size, self.device)
        return self._masked[size]

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Non-re-entrant checkpointing of the UNet's blocks.

        The WebUI's own (`modules/sd_hijack_checkpoint.py`) is re-entrant, which gives no gradient to a block none of
        whose inputs requires one, and knows nothing of SDXL's blocks.
        """
        with ExitStack() as stack:
            stack.enter_context(_steady_memory())
            for block in self.model.model.diffusion_model.modules():
                if type(block).__name__ in _BLOCKS:
                    stack.enter_context(webui.recomputed(block))
            yield

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures by the WebUI's VAE, as `processing.process_images_inner` makes them.

        Raises:
            LoraclrError: not a number came out, which half precision makes of some VAEs
        """
        devices, processing = webui.module("devices"), webui.module("processing")
        vae, precision = self.model.first_stage_model, devices.dtype_vae
        try:
            with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
                decoded = processing.decode_latent_batch(
                    self.model, latents.to(self.device), target_device=devices.cpu, check_for_nans=True
                )
        except devices.NansException as error:
            raise LoraclrError(f"No picture could be made: {error}") from error
        finally:
            # where a picture comes out as not a number the WebUI goes on with a VAE of higher precision from then on
            if devices.dtype_vae != precision:
                devices.dtype_vae = precision
                vae.to(precision)
        pictures = torch.stack(list(decoded)).float().add(1).div(2).clamp(0, 1)
        return [Image.fromarray((255.0 * np.moveaxis(p.numpy(), 0, 2)).astype(np.uint8)) for p in pictures]


#: of the free memory, what attention may plan with while other things are put there
_SHARE = 0.5


@contextmanager
def _steady_memory() -> Iterator[None]:
    """One figure for the free graphics memory, whenever it is asked for.

    Three of the WebUI's attention optimisations, Doggettx among them, which is the default, cut their work by what is free at the
    moment. Recomputed with less free than before, they would save other tensors than those of the first run, which
    checkpointing refuses.
    """
    optimizations = webui.module("sd_hijack_optimizations")
    ask = optimizations.get_available_vram
    free = int(_SHARE * ask())
    optimizations.get_available_vram = lambda: free
    try:
        yield
    finally:
        optimizations.get_available_vram = ask
