"""A stand-in for reForge: AUTOMATIC1111's (webui_stand_in.py) around a model whose parts hang in an engine like Forge's.

Written from `modules_forge/` and `ldm_patched/` of reForge as documentation; `test_real_forge.py` asks the same of the real one.
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
from webui_stand_in import StandIn
from webui_stand_in_forge import ALPHAS, Patcher, UNet, apply_circular_forge, clip_keys, unet_keys
from webui_stand_in_model import WIDTH, Clip, Model


class ModelSamplingDiscrete(nn.Module):
    """`ldm_patched/modules/model_sampling.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigmas", ((1 - ALPHAS) / ALPHAS).sqrt())


class ModelSamplingContinuousEDM(ModelSamplingDiscrete):
    pass


class EPS:
    pass


class V_PREDICTION(EPS):  # noqa: N801  (its name)
    pass


def sampling(times: type, predicted: type) -> nn.Module:
    """As `model_base.model_sampling` puts it together."""

    class ModelSampling(times, predicted):
        pass

    return ModelSampling()


class _ClipG(Clip):
    """SDXL's second, with q, k and v of their own as in transformers; and the pooled vector."""

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        z = super().forward(texts)
        return z, z.mean(1)


class ReforgeModel(Model):
    """What `shared.sd_model` is: AUTOMATIC1111's, with `forge_objects` around the same modules."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__(kind, channels)
        self.current_lora_hash, self.tiling_enabled = "[]", False
        self.before_reading = lambda: None
        names = {"SD1": ["clip_l"], "SDXL": ["clip_l", "clip_g"], "SDXL refiner": ["clip_g"]}[kind]
        readers = [self.cond_stage_model]
        if self.is_sdxl:
            readers = [_ClipG() if name == "clip_g" else Clip() for name in names]
            self.conditioner.embedders = nn.ModuleList([*readers, *self.conditioner.embedders[len(names) :]])
        vector = WIDTH + (5 if kind == "SDXL refiner" else 6) * 3 if self.is_sdxl else 0
        self.model.diffusion_model = UNet(channels, WIDTH * len(names), vector)
        kernel = nn.Module()
        kernel.diffusion_model, kernel.manual_cast_dtype = self.model.diffusion_model, None
        kernel.get_dtype = lambda: torch.float32
        kernel.model_sampling = sampling(ModelSamplingDiscrete, EPS)
        encoders = nn.ModuleDict({name: reader.wrapped for name, reader in zip(names, readers, strict=True)})
        clip = SimpleNamespace(cond_stage_model=encoders, patcher=Patcher(encoders))
        self.forge_objects_original = SimpleNamespace(
            unet=Patcher(kernel), clip=clip, vae=SimpleNamespace(latent_channels=4)
        )
        self.forge_objects = SimpleNamespace(**vars(self.forge_objects_original))

    def get_learned_conditioning(self, texts: Any) -> Any:
        self.before_reading()
        return super().get_learned_conditioning(texts)

    def parts_are_forges_own(self) -> bool:
        modules = (self.forge_objects_original.unet.model, self.forge_objects_original.clip.cond_stage_model)
        return all(parameter.requires_grad for part in modules for parameter in part.parameters())

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        assert self.parts_are_forges_own(), "reForge may move its models here"
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


class ReforgeStandIn(StandIn):
    """reForge, as far as the adapter knows it. Parts of its engine are in `ldm_patched`, by the names of their modules."""

    model_type = ReforgeModel

    def __init__(self, folder: Path, kind: str = "SD1", channels: int = 4) -> None:
        super().__init__(folder, kind, channels)
        self.loaded: list[list[Patcher]] = []
        self.networks.load_networks = self._load_networks
        self.parsed = {"merge": "stale"}
        self.networks.load_lora_state_dict = SimpleNamespace(cache_clear=self.parsed.clear)

        def attention_sage3() -> None:
            """A kernel without a backward pass."""

        self.forge_util = SimpleNamespace(apply_circular_forge=apply_circular_forge)
        #: how often the text encoders were loaded for a prompt
        self.moves = 0
        self.forge_clip = SimpleNamespace(move_clip_to_gpu=self._move_clip_to_gpu)
        self.model.before_reading = lambda: self.forge_clip.move_clip_to_gpu()
        self.ldm_patched = {
            "modules.weight_adapter": ModuleType("weight_adapter"),
            "modules.lora": SimpleNamespace(model_lora_keys_unet=unet_keys, model_lora_keys_clip=clip_keys),
            "modules.model_management": SimpleNamespace(
                load_models_gpu=self._load_models_gpu, get_free_memory=lambda dev=None, torch_free_too=False: 1000
            ),
            "modules.model_sampling": SimpleNamespace(rescale_zero_terminal_snr_sigmas=lambda sigmas: 2 * sigmas),
            "ldm.modules.attention": SimpleNamespace(
                attention_pytorch=lambda: None,
                optimized_attention=attention_sage3,
                optimized_attention_masked=attention_sage3,
            ),
        }

    def _move_clip_to_gpu(self) -> None:
        self.moves += 1

    def _load_networks(self, names: Sequence[str], te: Sequence[float], unet: Sequence[float]) -> None:
        self.networks.loaded_networks[:] = names

    def _load_models_gpu(self, patchers: list[Patcher], memory_required: float = 0) -> None:
        self.loaded.append(patchers)
        with torch.no_grad():
            for patcher in patchers:
                patcher.load()

    def install(self, patch: pytest.MonkeyPatch, *, lora: bool = True) -> ReforgeStandIn:
        super().install(patch, lora=lora)
        for name in ("ldm_patched", "modules_forge"):
            patch.setitem(sys.modules, name, ModuleType(name))
        for name in ("forge_clip", "forge_util"):
            patch.setitem(sys.modules, f"modules_forge.{name}", getattr(self, name))
        for name, part in self.ldm_patched.items():
            patch.setitem(sys.modules, f"ldm_patched.{name}", part)
        return self
