"""Stand-alone host: a Stable Diffusion checkpoint in diffusers' models, without a WebUI and without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..errors import LoraclrError
from ..layer_keys import other_names, text_encoder_key, unet_key
from ..lora_files import read_tensors
from ..low_rank import Deltas
from . import base
from .substitution import Layer, substituted

_BUNDLED = Path(__file__).parent / "sd1"
_TEXT_PREFIX = "cond_stage_model.transformer."


class DiffusersHost:
    """SD1.x in diffusers' models. Made by `load`."""

    family = base.SD1
    name = "diffusers"

    def __init__(
        self,
        checkpoint: str,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL,
        schedule: DDIMScheduler,
    ) -> None:
        self.checkpoint, self.checkpoint_path = checkpoint, Path(checkpoint)
        self.unet, self.text_encoder, self.vae, self.tokenizer = unet, text_encoder, vae, tokenizer
        for model in (unet, text_encoder, vae):
            model.requires_grad_(False).eval()
        self.device = unet.device
        self.latent_channels = unet.config.in_channels
        self.pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
        self.default_size = int(unet.config.sample_size) * self.pixels_per_latent
        self.prediction_type = schedule.config.prediction_type
        self.alphas_cumprod = schedule.alphas_cumprod
        self._layers = model_layers(unet, text_encoder)
        self.aliases: Mapping[str, str] = other_names(self._layers)

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def apply(self, deltas: Deltas) -> AbstractContextManager[None]:
        return substituted(self._layers, deltas)

    def encode(self, prompts: Sequence[str]) -> base.Conditioning:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return base.Conditioning({"context": self.text_encoder(tokens.to(self.device))[0]})

    def denoise(self, x: Tensor, t: Tensor, conditioning: base.Conditioning) -> Tensor:
        context = conditioning.tensors["context"].to(self.unet.dtype)
        return self.unet(x.to(self.unet.dtype), t.to(self.device), context).sample.float()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        self.unet.enable_gradient_checkpointing()
        # diffusers recomputes only in training mode; SD1's UNet has no dropout, so nothing else changes
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


def model_layers(unet: nn.Module, text_encoder: nn.Module) -> dict[str, Layer]:
    """Every linear layer and convolution of both models, by layer key."""
    found = {}
    for model, key in ((text_encoder, text_encoder_key), (unet, unet_key)):
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[key(path)] = Layer.of(module)
    return found


def load(checkpoint: Path | str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusersHost:
    """Load a checkpoint: a single `.safetensors` file (with its `.yaml` where it has one) or a diffusers folder.

    Raises:
        LoraclrError: it cannot be read, or is not a Stable Diffusion 1.x checkpoint
    """
    path = Path(checkpoint)
    try:
        parts = _load_folder(path) if path.is_dir() else _load_single_file(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, yaml.YAMLError) as error:
        config = path.with_suffix(".yaml")
        described = f"{path} with {config.name}" if config.is_file() else str(path)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise LoraclrError(
            f"{described} cannot be loaded ({reason}): the checkpoint or its configuration is damaged or of another kind."
        ) from error
    unet, text_encoder, tokenizer, vae, schedule = parts
    for model in (unet, text_encoder, vae):
        model.to(device=device, dtype=dtype)
    return DiffusersHost(str(path), unet, text_encoder, tokenizer, vae, schedule)


def _load_folder(path: Path):
    if not (path / "unet").is_dir():
        raise LoraclrError(
            f"{path} is not a diffusers folder (it has no unet/): name a checkpoint file or such a folder."
        )
    local = {"local_files_only": True}
    return (
        UNet2DConditionModel.from_pretrained(path, subfolder="unet", **local),
        CLIPTextModel.from_pretrained(path / "text_encoder", **local),
        CLIPTokenizer.from_pretrained(path / "tokenizer", **local),
        AutoencoderKL.from_pretrained(path, subfolder="vae", **local),
        DDIMScheduler.from_pretrained(path, subfolder="scheduler", **local),
    )


def _load_single_file(path: Path):
    tensors, _ = read_tensors(path)
    if (
        "model.diffusion_model.input_blocks.0.0.weight" not in tensors
        or f"{_TEXT_PREFIX}text_model.final_layer_norm.weight" not in tensors
    ):
        raise LoraclrError(f"{path} is not a Stable Diffusion 1.x checkpoint: name one in the single-file format.")
    yaml_path = path.with_suffix(".yaml")
    config = yaml.safe_load((yaml_path if yaml_path.is_file() else _BUNDLED / "v1-inference.yaml").read_text("utf-8"))
    params = config["model"]["params"]
    # from_single_file takes a path, or a mapping it may change
    unet = UNet2DConditionModel.from_single_file(dict(tensors), original_config=config)
    unet.register_to_config(sample_size=_latent_size(params))
    vae = AutoencoderKL.from_single_file(dict(tensors), original_config=config)
    vae.register_to_config(scaling_factor=params["scale_factor"])
    schedule = DDIMScheduler(
        num_train_timesteps=params["timesteps"],
        beta_start=params["linear_start"],
        beta_end=params["linear_end"],
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if params.get("parameterization") == "v" else "epsilon",
    )
    folder = yaml_path.parent / str(params["cond_stage_config"].get("params", {}).get("version", ""))
    return unet, _text_encoder(tensors, folder), CLIPTokenizer.from_pretrained(_BUNDLED / "tokenizer"), vae, schedule


def _latent_size(params: Mapping) -> int:
    return int(params["unet_config"]["params"]["image_size"])


def _text_encoder(tensors: Mapping[str, Tensor], folder: Path) -> CLIPTextModel:
    """The text encoder: sizes from the tensors, the number of heads from `folder/config.json` or CLIP's 64 per head."""
    weights = {key[len(_TEXT_PREFIX) :]: tensor for key, tensor in tensors.items() if key.startswith(_TEXT_PREFIX)}
    weights.pop("text_model.embeddings.position_ids", None)
    vocabulary, width = weights["text_model.embeddings.token_embedding.weight"].shape
    layers = 1 + max(int(key.split(".")[3]) for key in weights if key.startswith("text_model.encoder.layers."))
    config_file = folder / "config.json"
    heads = json.loads(config_file.read_text("utf-8"))["num_attention_heads"] if config_file.is_file() else width // 64
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
    )
    if not any(key.startswith("text_model.") for key in model.state_dict()):  # transformers 5
        weights = {key.removeprefix("text_model."): tensor for key, tensor in weights.items()}
    model.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    return model
