"""Load a checkpoint into diffusers' and transformers' models: from a single file or from a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...errors import LoraclrError
from ...files import read_tensors
from ...model import REFINER, SD1, SD2, SDXL, Family
from . import recognition, schedule, text_encoders
from .host import DiffusersHost, Parts
from .recognition import Kind
from .text_encoders import TextEncoder
from .unets import unet_from_file, vae_from_file

#: from latents to what the VAE reads, by family
_SCALING = {SD1.name: 0.18215, SD2.name: 0.18215, SDXL.name: 0.13025, REFINER.name: 0.13025}
_DAMAGED = (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError, StopIteration, AttributeError)


def load(checkpoint: Path | str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusersHost:
    """Load a checkpoint: a single `.safetensors` file (with its `.yaml` where it has one) or a diffusers folder.

    Raises:
        LoraclrError: it cannot be read, or LoRAs of its kind cannot be merged; the kind is told by its tensors
    """
    path = Path(checkpoint)
    try:
        parts = _load_folder(path) if path.is_dir() else _load_file(path)
    except (*_DAMAGED, yaml.YAMLError) as error:
        config = path.with_suffix(".yaml")
        described = f"{path} with {config.name}" if config.is_file() else str(path)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise LoraclrError(
            f"{described} cannot be loaded ({reason}): the checkpoint or its configuration is damaged or of another kind."
        ) from error
    # torch's own `to`: that of diffusers' models warns of modules to keep in fp32, of which these have none
    nn.Module.to(parts.unet, device=device, dtype=dtype)
    for encoder in parts.text_encoders:
        encoder.model.to(device=device, dtype=dtype)
    # XL's VAE leaves the range of fp16
    precise = dtype == torch.float16 and parts.kind.family.name in (SDXL.name, REFINER.name)
    nn.Module.to(parts.vae, device=device, dtype=torch.float32 if precise else dtype)
    return DiffusersHost(str(path), parts)


def _load_folder(path: Path) -> Parts:
    if not (path / "unet").is_dir():
        raise LoraclrError(
            f"{path} is not a diffusers folder of {recognition.SUPPORTED} (it has no unet/{_pipeline(path)}): name a checkpoint "
            "file or such a folder."
        )
    local = {"local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **local)
    suffixes = [suffix for suffix in ("", "_2") if (path / f"text_encoder{suffix}").is_dir()]
    kind = recognition.recognise_models(unet.state_dict(), len(suffixes), str(path))
    encoders = []
    for suffix in suffixes:
        projected = suffix == "_2"
        model = CLIPTextModelWithProjection if projected else CLIPTextModel
        encoders.append(
            TextEncoder(
                model.from_pretrained(path / f"text_encoder{suffix}", **local),
                CLIPTokenizer.from_pretrained(path / f"tokenizer{suffix}", **local),
                penultimate=_is_xl(kind.family),
            )
        )
    return Parts(
        kind,
        unet,
        tuple(encoders),
        AutoencoderKL.from_pretrained(path, subfolder="vae", **local),
        DDIMScheduler.from_pretrained(path, subfolder="scheduler", **local),
        unet.config.sample_size,
    )


def _pipeline(path: Path) -> str:
    """What pipeline a folder without a UNet is for, as a part of a message."""
    try:
        name = json.loads((path / "model_index.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"; it is for diffusers' {name}"


def _is_xl(family: Family) -> bool:
    return family in (SDXL, REFINER)


@dataclass(frozen=True)
class _Settings:
    """What a single file's `.yaml` says, where it has one; its tensors say the rest.

    Attributes:
        params: `model.params`
        folder: where it is
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @classmethod
    def beside(cls, path: Path) -> _Settings:
        config = path.with_suffix(".yaml")
        if not config.is_file():
            return cls()
        params = yaml.safe_load(config.read_text("utf-8"))["model"]["params"]
        if not params:
            raise ValueError(f"{config.name} has no model.params")
        return cls(params, config.parent)

    def unet(self, name: str) -> Any:
        """A setting of the UNet, ldm's or sgm's; None where it has none."""
        config = self.params.get("unet_config") or self.params.get("network_config") or {}
        return config.get("params", {}).get(name)

    def latents(self) -> int | None:
        """Height and width of the latents; ldm's configurations have one for the model and one of the UNet, mostly unused."""
        return self.params.get("image_size") or self.unet("image_size")

    def clip_heads(self) -> int | None:
        """The number of attention heads of CLIP's text encoder, where the configuration names a folder that says it."""
        encoders = [self.params.get("cond_stage_config") or {}]
        encoders += (self.params.get("conditioner_config") or {}).get("params", {}).get("emb_models", [])
        for encoder in encoders:
            version = encoder.get("params", {}).get("version")
            if version and (self.folder / version / "config.json").is_file():
                return json.loads((self.folder / version / "config.json").read_text("utf-8"))["num_attention_heads"]
        return None


def _load_file(path: Path) -> Parts:
    tensors, metadata = read_tensors(path)
    kind = recognition.recognise_file(tensors, str(path))
    settings = _Settings.beside(path)
    encoders = _text_encoders(tensors, kind, settings)
    pooled = encoders[-1].model.config.projection_dim
    heads = {"heads": settings.unet("num_heads"), "head_width": settings.unet("num_head_channels")}
    unet = unet_from_file(tensors, kind.family, **heads, pooled=pooled)
    unet.register_to_config(sample_size=settings.latents())
    scaling = settings.params.get("scale_factor", _SCALING[kind.family.name])
    velocity = schedule.declared_velocity(settings.params, tensors, metadata)
    if velocity is None:
        probed = kind.family is SD2 and not kind.inpainting
        velocity = probed and schedule.predicts_velocity(unet.float())
    # A network that predicts noise cannot tell anything from noise alone, so the marker means nothing there.
    steps = schedule.make_schedule(
        settings.params, velocity=velocity, zero_terminal_snr=velocity and "ztsnr" in tensors
    )
    vae = vae_from_file(tensors, scaling_factor=scaling)
    return Parts(kind, unet, encoders, vae, steps, settings.latents())


def _text_encoders(tensors: Mapping[str, Tensor], kind: Kind, settings: _Settings) -> tuple[TextEncoder, ...]:
    """CLIP's text encoder, then OpenCLIP's: those that the family has."""
    encoders, xl = [], _is_xl(kind.family)
    clip = recognition.prefix_of(tensors, recognition.CLIP)
    if clip is not None:
        weights = text_encoders.clip_weights(tensors, clip)
        options = {"heads": settings.clip_heads(), "activation": "quick_gelu", "projected": False}
        tokenizer = text_encoders.bundled_tokenizer(open_clip=False)
        encoders.append(TextEncoder(text_encoders.text_model(weights, **options), tokenizer, penultimate=xl))
    open_clip = recognition.prefix_of(tensors, recognition.OPEN_CLIP)
    if open_clip is not None:
        weights = text_encoders.open_clip_weights(tensors, open_clip)
        weights = weights if xl else text_encoders.without_last_layer(weights)
        options = {"heads": None, "activation": "gelu", "projected": xl}
        tokenizer = text_encoders.bundled_tokenizer(open_clip=True)
        encoders.append(TextEncoder(text_encoders.text_model(weights, **options), tokenizer, penultimate=xl))
    return tuple(encoders)
