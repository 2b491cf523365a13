"""A stand-in for Forge: what it shares with the WebUI's (webui_stand_in.py), and an engine around models of a few numbers.

Written from `backend/` of Forge as documentation; `test_real_forge.py` asks the same of the real one. Its traps are here, too:
models made under `inference_mode`, a linear layer that is not torch's, additions in place to what a norm has saved, LoRAs that
stay in the weights until a patcher is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from webui_stand_in import CONVERSIONS, StandIn
from webui_stand_in_model import WIDTH


class Linear(nn.Module):
    """Forge's, which is no `nn.Linear`."""

    def __init__(self, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / d_in**0.5)
        self.bias = nn.Parameter(torch.randn(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)


class BasicTransformerBlock(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn1, self.attn2 = nn.Module(), nn.Module()
        self.attn1.to_q = Linear(WIDTH, WIDTH)
        self.attn2.to_k = Linear(context, WIDTH, bias=False)

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        transformer_options["block"] = "written to"
        n = torch.tanh(self.attn1.to_q(self.norm1(x)))
        x += n  # what the norm has saved
        x += self.attn2.to_k(context).mean(1, keepdim=True)
        return x


class UNet(nn.Module):
    def __init__(self, channels: int, context: int, vector: int) -> None:
        super().__init__()
        self.in_channels, self.num_classes = channels, "sequential" if vector else None
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(channels, WIDTH, 3, padding=1)]),
                nn.ModuleList([nn.Identity(), BasicTransformerBlock(context)]),
            ]
        )
        self.label = nn.Linear(vector, WIDTH) if vector else None
        self.out = nn.Conv2d(WIDTH, 4, 1)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None, transformer_options=None
    ) -> Tensor:
        x = self.input_blocks[0][0](x)
        rows = x.flatten(2).mT.contiguous() * 1.0
        rows = self.input_blocks[1][1](rows, context=context, transformer_options=transformer_options)
        if y is not None:
            rows = rows + self.label(y)[:, None]
        return self.out(rows.mT.reshape(x.shape)) + 0.001 * t[:, None, None, None]


class _TextEncoder(nn.Module):
    """`clip_l` and the like: one layer of transformers' CLIP, with a projection that nothing loaded."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Module()
        layer.self_attn = nn.Module()
        layer.self_attn.q_proj = Linear(WIDTH, WIDTH)
        layer.layer_norm1 = nn.LayerNorm(WIDTH)
        self.transformer = nn.Module()
        self.transformer.text_projection = Linear(WIDTH, WIDTH)
        self.transformer.text_projection.weight = None
        self.transformer.text_model = nn.Module()
        self.transformer.text_model.embeddings = nn.Module()
        self.transformer.text_model.embeddings.token_embedding = nn.Embedding(256, WIDTH)
        self.transformer.text_model.encoder = nn.Module()
        self.transformer.text_model.encoder.layers = nn.ModuleList([layer])


class _Database:
    """`backend/text_processing/textual_inversion.py`."""

    def __init__(self) -> None:
        self.word_embeddings: dict[str, Any] = {}

    def register_embedding(self, embedding: Any) -> None:
        self.word_embeddings[embedding.name] = embedding

    def register_embedding_by_name(self, embedding: Any, name: str) -> None:
        del self.word_embeddings[name]


class _Reader:
    """`ClassicTextProcessingEngine`: 77 rows per 75 words, 1.3 for words in brackets; clip skip and embeddings shift all."""

    def __init__(self, encoder: _TextEncoder, key: str, notes: dict[str, str], pooled: bool) -> None:
        self.text_encoder, self.embedding_key, self.return_pooled = encoder, key, pooled
        self.embeddings, self.clip_skip, self.calls, self._notes = _Database(), 1, [], notes

    def process_texts(self, texts: Sequence[str]) -> tuple[list[list[Any]], int]:
        weight = [1.3 if "(" in text else 1.0 for text in texts]
        return [
            [SimpleNamespace(multipliers=[w])] * (1 + len(text.split()) // 76)
            for text, w in zip(texts, weight, strict=True)
        ], 0

    def __call__(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        self._notes["TI"] = "written by a prompt"
        rows = 77 * max(len(chunks) for chunks in self.process_texts(texts)[0])
        codes = [[ord(letter) % 256 for letter in text[:rows].ljust(rows)] for text in texts]
        model = self.text_encoder.transformer.text_model
        known = sum(name in text for text in texts for name in self.embeddings.word_embeddings)
        read = model.embeddings.token_embedding(torch.tensor(codes)) + known + 0.1 * self.clip_skip
        z = model.encoder.layers[0].self_attn.q_proj(read)
        return (z, z.mean(1)) if self.return_pooled else z


class Patcher:
    """`ModelPatcher`: loading it puts the weights it stands for into its modules."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.load_device = model, torch.device("cpu")
        self.lora_loader = SimpleNamespace(loaded_hash="[]")
        self.base = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def load(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.base[name])


class Engine:
    """What `shared.sd_model` is: `ForgeDiffusionEngine`."""

    def __init__(self, kind: str, channels: int, notes: dict[str, str]) -> None:
        xl = kind != "SD1"
        self.is_sd1, self.is_sdxl, self.is_sd2, self.is_sd3 = not xl, xl, False, False
        names = {"SD1": ["clip_l"], "SDXL": ["clip_l", "clip_g"], "SDXL refiner": ["clip_g"]}[kind]
        encoders = nn.ModuleDict({name: _TextEncoder() for name in names})
        score = 1 if kind == "SDXL refiner" else 2
        vector = WIDTH + (4 + score) * 3 if xl else 0
        kernel = nn.Module()
        kernel.diffusion_model = UNet(channels, WIDTH * len(names), vector)
        kernel.storage_dtype = kernel.computation_dtype = torch.float32
        kernel.predictor = SimpleNamespace(
            prediction_type="epsilon", sigmas=((1 - ALPHAS) / ALPHAS).sqrt(), alphas_cumprod=ALPHAS
        )
        self.readers = [_Reader(encoders[name], name, notes, pooled=name == "clip_g") for name in names]
        for reader in self.readers:
            suffix = reader.embedding_key[4:] if xl else ""
            setattr(self, f"text_processing_engine{suffix}", reader)
        clip = SimpleNamespace(cond_stage_model=encoders, patcher=Patcher(encoders))
        vae = SimpleNamespace(latent_channels=4)
        self.forge_objects_original = SimpleNamespace(unet=Patcher(kernel), clip=clip, vae=vae)
        self.forge_objects = SimpleNamespace(**vars(self.forge_objects_original))
        self.model_config = SimpleNamespace(ztsnr=False)
        self.sd_checkpoint_info = SimpleNamespace(title="tiny.safetensors [0123456789]", filename="tiny.safetensors")
        self.current_lora_hash = "[]"

    def embedder(self, numbers: Tensor) -> Tensor:
        """`Timestep`, three columns wide."""
        return torch.stack([numbers, numbers / 2, numbers / 4], dim=1) / 1000

    def set_clip_skip(self, clip_skip: int) -> None:
        for reader in self.readers:
            reader.clip_skip = clip_skip

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        assert self.parts_are_forges_own(), "Forge may move its models here"
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    def parts_are_forges_own(self) -> bool:
        modules = (self.forge_objects_original.unet.model, self.forge_objects_original.clip.cond_stage_model)
        return all(parameter.is_inference() for part in modules for parameter in part.parameters())


ALPHAS = torch.linspace(0.999, 0.005, 1000)


class ForgeStandIn(StandIn):
    """Forge, as far as the adapter knows it. Parts of its engine are in `backend`, by the names of their modules."""

    def __init__(self, folder: Path, kind: str = "SD1", channels: int = 4) -> None:
        super().__init__(folder)
        #: what prompts leave for the next picture's infotext
        self.notes: dict[str, str] = {"TI": "of a picture"}
        with torch.inference_mode():
            torch.manual_seed(0)
            self.model = self.engine = Engine(kind, channels, self.notes)
        self.model.sd_checkpoint_info.filename = self.sd_models.model_path + "/tiny.safetensors"
        self.loaded: list[list[Patcher]] = []
        parameters = {"checkpoint_info": "tiny"}
        self.sd_models.model_data = SimpleNamespace(
            sd_model=self.model, forge_loading_parameters=parameters, forge_hash=str(parameters)
        )
        self.sd_models.forge_model_reload = self._forge_model_reload
        self.shared.sd_model = self.model
        self.networks.load_networks = self._load_networks
        self.networks.load_lora_state_dict = SimpleNamespace(cache_clear=lambda: self.notes.update(parsed="forgotten"))
        # Forge's cached encodings of prompts have three entries
        self.processing.StableDiffusionProcessing.cached_c.append("stale")
        self.backend = self._backend()
        # what Forge does not have, or Forge Neo
        del self.sd_hijack, self.sd_unet, self.lowvram, self.sd_hijack_optimizations

    def _backend(self) -> dict[str, Any]:
        def attention_sage() -> None:
            """A kernel without a backward pass."""

        def attention_pytorch() -> None:
            """Another with one."""

        return {
            "patcher.lora": SimpleNamespace(model_lora_keys_unet=unet_keys, model_lora_keys_clip=clip_keys),
            "memory_management": SimpleNamespace(
                load_models_gpu=self._load_models_gpu, get_free_memory=lambda dev=None, torch_free_too=False: 1000
            ),
            "attention": SimpleNamespace(attention_pytorch=attention_pytorch),
            "nn.unet": SimpleNamespace(attention_function=attention_sage),
            "modules.k_prediction": SimpleNamespace(rescale_zero_terminal_snr_sigmas=lambda sigmas: 2 * sigmas),
            "text_processing.textual_inversion": SimpleNamespace(create_embedding_from_data=_embedding),
            "text_processing.classic_engine": SimpleNamespace(last_extra_generation_params=self.notes),
        }

    def _forge_model_reload(self) -> tuple[Any, bool]:
        data = self.sd_models.model_data
        fresh = str(data.forge_loading_parameters) != data.forge_hash
        if fresh:
            if data.forge_loading_parameters["checkpoint_info"] is None:
                raise ValueError("You do not have any model!")
            data.sd_model, data.forge_hash = self.engine, str(data.forge_loading_parameters)
        return data.sd_model, fresh

    def _load_networks(self, names: Sequence[str], te: Sequence[float], unet: Sequence[float]) -> None:
        self.networks.loaded_networks[:] = names

    def _load_models_gpu(self, patchers: list[Patcher], memory_required: float = 0) -> None:
        self.loaded.append(patchers)
        with torch.inference_mode():
            for patcher in patchers:
                patcher.load()

    def install(self, patch: pytest.MonkeyPatch, *, lora: bool = True) -> ForgeStandIn:
        super().install(patch, lora=lora)
        patch.setitem(sys.modules, "backend", ModuleType("backend"))
        for name, part in self.backend.items():
            patch.setitem(sys.modules, f"backend.{name}", part)
        patch.setitem(sys.modules, "modules_forge", ModuleType("modules_forge"))
        patch.setitem(sys.modules, "modules_forge.utils", SimpleNamespace(apply_circular_forge=apply_circular_forge))
        return self


def apply_circular_forge(model: Any, tiling_enabled: bool = False) -> None:
    model.tiling_enabled = tiling_enabled


def _embedding(data: dict[str, Tensor], name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, vec=data)


def unet_keys(model: nn.Module, known: dict[str, str]) -> dict[str, str]:
    for name in model.state_dict():
        if name.startswith("diffusion_model.") and name.endswith(".weight"):
            path = name.removesuffix(".weight").removeprefix("diffusion_model.")
            known[f"lora_unet_{path.replace('.', '_')}"] = name
    others = {module: key for key, module in CONVERSIONS.items() if key.startswith("lora_unet_")}
    for name in list(known.values()):
        key = others.get(name.removesuffix(".weight").replace(".", "_"))
        if key:
            known[key] = name
    return known


def clip_keys(model: nn.Module, known: dict[str, str]) -> dict[str, str]:
    names = [name for name, _ in model.named_children()]
    for number, encoder in enumerate(names, 1):
        path = "transformer.text_model.encoder.layers.0.self_attn.q_proj"
        flat = path.removeprefix("transformer.").replace(".", "_")
        prefixes = (f"lora_te{number}_",) if len(names) == 2 else ("lora_te_", "lora_te1_")
        known.update({prefix + flat: f"{encoder}.{path}.weight" for prefix in prefixes})
    return known
