"""Hosts that have a real checkpoint's layer shapes and nothing else: no weights, random inputs of the real sizes.

The model's layers are stand-ins without weights that receive random rows of the real shapes (found by running diffusers' models
on the meta device), so that what a benchmark measures is what recording and solving take. Linux only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_loraclr import model
from lib_loraclr.files import text_encoder_key, unet_key
from lib_loraclr.model import Factors, Layer, substituted

Shapes = dict[str, tuple[int, ...]]
TOKENS = 77
#: in the keys of the layers that LoRA trainers adapt by default: attention, feed-forward, and what is between transformers
ADAPTED = ("attn", "ff_net", "proj_in", "proj_out", "mlp")


@dataclass(frozen=True)
class Architecture:
    """A real checkpoint's models, as diffusers and transformers build them.

    Attributes:
        family: its family
        name: what it is called
        unet: arguments of `UNet2DConditionModel`
        text_encoders: prefix of the layer keys -> class, arguments of `CLIPTextConfig`
        context: width of what cross-attention reads
        added: width of the pooled text and of the sizes that the UNet reads besides, and how many sizes; SDXL only
    """

    family: model.Family
    name: str
    unet: Mapping[str, object]
    text_encoders: Mapping[str, tuple[type[nn.Module], Mapping[str, int]]]
    context: int
    added: tuple[int, int] | None = None

    def small(self) -> Architecture:
        """The same at a hundredth of its widths, and so of its time; everything else is as it is."""
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        encoders = {prefix: (kind, text) for prefix, (kind, _) in self.text_encoders.items()}
        context = 32 * len(encoders)
        unet: dict[str, object] = {**self.unet, "block_out_channels": (32, 64, 64), "cross_attention_dim": context}
        unet |= {"attention_head_dim": 2, "norm_num_groups": 8}
        if self.added:
            unet |= {"transformer_layers_per_block": (1, 1, 2), "projection_class_embeddings_input_dim": 32 + 6 * 256}
        else:
            down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
            unet |= {"down_block_types": (down[0], *down), "up_block_types": (*up, up[1])}
        added = (32, 6) if self.added else None
        return Architecture(self.family, f"small {self.name}", unet, encoders, context, added)


_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SD15 = Architecture(
    model.SD1,
    "SD1.5",
    {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    {"lora_te_": (CLIPTextModel, _CLIP_L)},
    768,
)
#: the `config.json` of stable-diffusion-xl-base-1.0's UNet and text encoders, as far as it decides shapes
SDXL = Architecture(
    model.SDXL,
    "SDXL",
    {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    {"lora_te1_": (CLIPTextModel, _CLIP_L), "lora_te2_": (CLIPTextModelWithProjection, _BIG_G)},
    2048,
    (1280, 6),
)


class _StandIn(nn.Module):
    """A layer's shape: a weight of one number seen `d_out * d_in` times, and a forward that does nothing."""

    def __init__(self, weight: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1).expand(weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def _layers(model: nn.Module, key: Callable[[str], str]) -> dict[str, nn.Module]:
    return {key(path): m for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def _input_shapes(layers: Mapping[str, nn.Module], run: Callable[[], object]) -> tuple[Shapes, dict[str, str]]:
    """What shape enters each layer at batch 1, and which layers receive the same tensor."""
    shapes, first, same, held, handles = {}, {}, {}, [], []
    for key, module in layers.items():

        def note(_: nn.Module, arguments: tuple[Tensor, ...], key: str = key) -> None:
            held.append(arguments[0])
            shapes[key] = tuple(arguments[0].shape[1:])
            same[key] = first.setdefault(id(arguments[0]), key)

        handles.append(module.register_forward_pre_hook(note))
    run()
    for handle in handles:
        handle.remove()
    return shapes, same


class ShapesHost:
    """A host with an architecture's layer shapes, and random numbers for everything else."""

    name = "shapes"
    latent_channels, pixels_per_latent, prediction_type = 4, 8, "epsilon"
    device = torch.device("cpu")
    aliases: Mapping[str, str] = {}
    clip_skip, weighs_words = 1, False

    def __init__(self, architecture: Architecture, *, substitute: bool = True) -> None:
        """
        Args:
            substitute: whether `apply` makes changed weights, as a real host does while its model runs
        """
        self.family, self.default_size = architecture.family, architecture.family.native_size
        self.checkpoint = f"{architecture.name} (shapes only)"
        self.checkpoint_path = Path(self.checkpoint)  # where no file is
        schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.alphas_cumprod = schedule.alphas_cumprod
        self._architecture, self._substitute = architecture, substitute
        with torch.device("meta"):
            self._unet = UNet2DConditionModel(**architecture.unet)
        real = self._real_unet = _layers(self._unet, unet_key)
        self._texts = []
        for prefix, (kind, sizes) in architecture.text_encoders.items():
            with torch.device("meta"):
                encoder, ids = kind(CLIPTextConfig(**sizes)), torch.zeros(1, TOKENS, dtype=torch.long)
            layers = _layers(encoder, lambda path, prefix=prefix: text_encoder_key(path, prefix))
            self._texts.append(_input_shapes(layers, lambda encoder=encoder, ids=ids: encoder(ids)))
            real = {**real, **layers}
        self._by_size: dict[tuple[int, ...], tuple[Shapes, dict[str, str]]] = {}
        self._layers = {
            key: Layer.of(_StandIn(module.weight.shape))
            for key, module in real.items()
            if any(part in key for part in ADAPTED)
        }

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def apply(self, deltas: Mapping[str, Factors]):
        return substituted(self._layers, deltas, self.device) if self._substitute else nullcontext()

    def encode(self, prompts: Sequence[str]) -> model.Conditioning:
        for shapes, same in self._texts:
            self._feed(shapes, same, batch=len(prompts))
        return model.Conditioning({"context": torch.randn(len(prompts), 1, self._architecture.context)})

    def denoise(self, x: Tensor, t: Tensor, conditioning: model.Conditioning) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in self._by_size:
            self._by_size[size] = _input_shapes(self._real_unet, lambda: self._run_on_meta(size))
        self._feed(*self._by_size[size], batch=len(x))
        return torch.randn_like(x)

    def rows_entering(self, size: tuple[int, int]) -> dict[str, int]:
        """Layer key -> rows that enter it in one evaluation, by the size of the latents; of the layers that trainers adapt."""
        if size not in self._by_size:
            self._by_size[size] = _input_shapes(self._real_unet, lambda: self._run_on_meta(size))
        every = {key: shape for shapes, _ in [*self._texts, self._by_size[size]] for key, shape in shapes.items()}
        return {key: math.prod(every[key]) // layer.shape[1] for key, layer in self._layers.items() if key in every}

    def _run_on_meta(self, size: tuple[int, ...]) -> None:
        added = {}
        with torch.device("meta"):
            if self._architecture.added:
                pooled, sizes = self._architecture.added
                added = {
                    "added_cond_kwargs": {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, sizes)}
                }
            context = torch.zeros(1, TOKENS, self._architecture.context)
            self._unet(torch.zeros(1, self.latent_channels, *size), torch.zeros(1), context, **added)

    def _feed(self, shapes: Shapes, same: dict[str, str], batch: int) -> None:
        shared: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            # drawing numbers that nobody looks at would be all that most evaluations take
            if key in self._layers and self._layers[key].module._forward_pre_hooks:
                module = self._layers[key].module
                shared[same[key]] = given = shared.get(same[key], None)
                if given is None:
                    # one random row per sample, seen at every position: the maps themselves are the model's, not ours
                    columns = self._layers[key].shape[1]
                    positions = math.prod(shape) // columns
                    shared[same[key]] = given = torch.randn(batch, 1, columns).expand(batch, positions, columns)
                module(given)

    def knowing(self, embeddings):
        return nullcontext(())

    def skipping(self, clip_skip: int):
        return nullcontext()

    def refinement_obstacle(self) -> None:
        return None

    def recomputing(self):
        return nullcontext()

    def decode(self, latents: Tensor) -> list:
        return []


def random_lora(host: ShapesHost, path: Path, *, rank: int, seed: int) -> Path:
    """A LoRA file with a random delta for every layer of the host."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, layer in host.layers().items():
        d_out, d_in = layer.shape
        tail = (1, 1) if layer.weight.dim() == 4 else ()
        tensors[f"{key}.lora_up.weight"] = torch.randn(d_out, rank, *tail, generator=generator).half()
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, d_in, *tail, generator=generator).half()
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)
    return path
