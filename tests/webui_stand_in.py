"""A stand-in for what the host adapter uses of the WebUI: the same names and promises, around models of a few numbers.

Written from `modules/` and `extensions-builtin/Lora` of the WebUI 1.10.1 as documentation; `test_real_webui.py` asks the same of
the real one.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from webui_stand_in_model import WIDTH, Model

#: file's name of a module -> the WebUI's, for the modules of the stand-in's SD1 model
CONVERSIONS = {
    "lora_unet_conv_in": "diffusion_model_input_blocks_0_0",
    "lora_unet_down_blocks_0_attentions_0_attn1_to_q": "diffusion_model_input_blocks_1_1_attn1_to_q",
}


class SdVersion(enum.Enum):
    Unknown = 1
    SD1 = 2
    SD2 = 3
    SDXL = 4


class _Prompts(list):
    def __init__(self, prompts: Sequence[str], is_negative_prompt: bool = False) -> None:
        super().__init__(prompts)
        self.is_negative_prompt = is_negative_prompt


class _State(SimpleNamespace):
    def begin(self, job: str) -> None:
        self.job, self.interrupted, self.textinfo = job, False, None

    def end(self) -> None:
        self.job = ""


def _shared(model: nn.Module, folder: Path) -> SimpleNamespace:
    """`modules/shared.py`."""
    return SimpleNamespace(
        sd_model=model,
        state=_State(job="", interrupted=False, stopping_generation=False, textinfo=None, sampling_step=0),
        opts=SimpleNamespace(
            temp_dir="",
            CLIP_stop_at_last_layers=1,
            sdxl_crop_top=0,
            sdxl_crop_left=0,
            sdxl_refiner_high_aesthetic_score=6.0,
            sdxl_refiner_low_aesthetic_score=2.5,
            sd_model_checkpoint="tiny.safetensors",
        ),
        cmd_opts=SimpleNamespace(
            lora_dir=str(folder), lyco_dir_backcompat=str(folder.parent / "lycoris"), ckpt_dir=None
        ),
        loaded_hypernetworks=["some hypernetwork"],
    )


def _devices() -> SimpleNamespace:
    """`modules/devices.py`."""
    cpu = torch.device("cpu")
    return SimpleNamespace(
        device=cpu,
        cpu=cpu,
        dtype=torch.float32,
        dtype_unet=torch.float32,
        dtype_vae=torch.float16,
        fp8=False,
        unet_needs_upcast=False,
        NansException=ArithmeticError,
        autocast=nullcontext,
        torch_gc=lambda: None,
    )


def _processing() -> SimpleNamespace:
    """`modules/processing.py`."""
    cached = SimpleNamespace(cached_c=["key", "stale"], cached_uc=["key", "stale"])
    return SimpleNamespace(
        opt_f=8,
        decode_latent_batch=lambda model, latents, **_: list(
            latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        ),
        # drawn from the VAE's distribution, like the WebUI's
        txt2img_image_conditioning=lambda model, x, width, height: torch.cat(
            [torch.ones_like(x[:, :1]), torch.randn_like(x)], dim=1
        ),
        StableDiffusionProcessing=cached,
        StableDiffusionProcessingTxt2Img=cached,
    )


class _EmbeddingDatabase:
    """`modules/textual_inversion/textual_inversion.py`."""

    def __init__(self, expected_shape: int) -> None:
        self.expected_shape = expected_shape
        self.word_embeddings: dict[str, Any] = {}

    def register_embedding(self, embedding: Any, model: nn.Module) -> None:
        self.register_embedding_by_name(embedding, model, embedding.name)

    def register_embedding_by_name(self, embedding: Any, model: nn.Module, name: str) -> None:
        if embedding is None:
            del self.word_embeddings[name]
        else:
            self.word_embeddings[name] = embedding


def _embedding(data: dict[str, Tensor], name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, vec=data, shape=sum(tensor.shape[-1] for tensor in data.values()))


class StandIn:
    """The WebUI, as far as the adapter knows it. Its parts are attributes by the names of the WebUI's modules."""

    model_type = Model

    def __init__(self, folder: Path, kind: str = "SD1", channels: int = 4) -> None:
        """
        Args:
            folder: where LoRAs are looked for
            kind: of the loaded checkpoint: SD1, SDXL or SDXL refiner
            channels: that its UNet reads
        """
        torch.manual_seed(0)
        self.model = self.model_type(kind, channels)
        #: the checkpoint at the top left where the last picture left another one loaded; whether it was a tiled one
        self.chosen: nn.Module | None = None
        self.tiling = False
        self.shared = _shared(self.model, folder)
        self.devices = _devices()
        self.call_queue = SimpleNamespace(queue_lock=Lock())
        self.paths_internal = SimpleNamespace(roboto_ttf_file=str(folder / "no-font.ttf"))
        stores = self._stores = {}
        self.cache = SimpleNamespace(
            cache=lambda name: stores.setdefault(name, {}),
            cached_data_for_file=self._cached,
            cache_dir=str(folder.parent / "cache"),
        )
        self.sd_unet = SimpleNamespace(current_unet=None)
        self.lowvram = SimpleNamespace(is_enabled=lambda model: model.lowvram, send_everything_to_cpu=lambda: None)
        self.sd_hijack = SimpleNamespace(
            model_hijack=SimpleNamespace(
                comments=["a comment"],
                extra_generation_params={},
                fixes=None,
                apply_circular=self._apply_circular,
                embedding_db=_EmbeddingDatabase(2 * WIDTH if self.model.is_sdxl else WIDTH),
            )
        )
        self.textual_inversion = SimpleNamespace(create_embedding_from_data=_embedding)
        self.sd_models = self._sd_models(folder.parent / "checkpoints")
        self.sd_hijack_optimizations = SimpleNamespace(get_available_vram=lambda: 1000)
        self.processing = _processing()
        self.extra_networks = SimpleNamespace(parse_prompt=lambda prompt: (prompt.replace("<lora:x:1>", ""), {}))
        self.prompt_parser = SimpleNamespace(
            SdConditioning=_Prompts,
            get_learned_conditioning_prompt_schedules=lambda prompts, steps: [[[steps, text]] for text in prompts],
        )
        self.ui_extra_networks = SimpleNamespace(allowed_preview_extensions=lambda: {"png", "jpg"})
        self.networks = _Networks(self, folder)
        self.networks.assign_network_names_to_compvis_modules(self.model)

    def _sd_models(self, checkpoints: Path) -> SimpleNamespace:
        """`modules/sd_models.py`."""
        self.model.sd_checkpoint_info.filename = str(checkpoints / "tiny.safetensors")
        return SimpleNamespace(
            model_data=SimpleNamespace(sd_model=self.model, loaded_sd_models=[self.model]),
            checkpoint_aliases={},
            apply_alpha_schedule_override=self._apply_alpha_schedule_override,
            model_path=str(checkpoints),
            checkpoints_list={},
            list_models=self._list_models,
            reload_model_weights=self._reload_model_weights,
        )

    def _reload_model_weights(self) -> None:
        """Loads what is chosen, if that is not what is loaded."""
        if self.chosen is not None:
            self.model = self.shared.sd_model = self.sd_models.model_data.sd_model = self.chosen

    def _apply_alpha_schedule_override(self, model: nn.Module) -> None:
        """The settings' schedule in place of the last picture's."""
        model.alphas_cumprod = model.alphas_cumprod_original.clone()

    def _apply_circular(self, enabled: bool) -> None:
        self.tiling = enabled

    def _cached(self, subsection: str, title: str, filename: str, read: Callable[[], Any]) -> Any:
        """As `modules/cache.py`: read again only if the file has changed."""
        store, modified = self._stores.setdefault(subsection, {}), Path(filename).stat().st_mtime
        if title not in store or modified > store[title]["mtime"]:
            store[title] = {"mtime": modified, "value": read()}
        return store[title]["value"]

    def write_checkpoint(self) -> Path:
        """The file that the model was loaded from, and the list of checkpoints with it."""
        path = Path(self.model.sd_checkpoint_info.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name.replace(".wrapped.", "."): t.contiguous() for name, t in self.model.state_dict().items()}
        save_file(tensors, path)
        self._list_models()
        return path

    def _list_models(self) -> None:
        listed = self.sd_models.checkpoints_list
        listed.clear()
        for path in Path(self.sd_models.model_path).rglob("*.safetensors"):
            title = path.relative_to(self.sd_models.model_path).as_posix()
            listed[title] = SimpleNamespace(name_for_extra=path.stem, title=title, filename=str(path))

    def install(self, patch: pytest.MonkeyPatch, *, lora: bool = True) -> StandIn:
        """Let `import modules.…` and `import networks` find this; without `lora`, as if that extension were off."""
        patch.setitem(sys.modules, "modules", ModuleType("modules"))
        for name, part in vars(self).items():
            if name not in ("model", "networks"):
                patch.setitem(sys.modules, f"modules.{name}", part)
        patch.setitem(sys.modules, "modules.textual_inversion.textual_inversion", self.textual_inversion)
        patch.setitem(sys.modules, "networks", self.networks if lora else None)
        return self


class _Networks:
    """The built-in extension's `networks`: the list of files, and weights that are changed in place when a layer runs."""

    def __init__(self, webui: StandIn, folder: Path) -> None:
        self._webui, self._folder = webui, folder
        self.available_networks: dict[str, Any] = {}
        self.available_network_aliases: dict[str, Any] = {}
        self.forbidden_network_aliases: dict[str, int] = {}
        self.networks_in_memory: dict[str, Any] = {}
        self.loaded_networks: list[Any] = []
        self.metadata: dict[str, dict[str, Any]] = {}

    def convert_diffusers_name_to_compvis(self, key: str, is_sd2: bool) -> str:
        return CONVERSIONS.get(key, key)

    def assign_network_names_to_compvis_modules(self, model: Model) -> None:
        mapping = {}
        embedders = enumerate(model.conditioner.embedders) if model.is_sdxl else [("", model.cond_stage_model)]
        encoders = [(number, embedder) for number, embedder in embedders if hasattr(embedder, "wrapped")]
        for number, encoder in encoders:
            prefix = f"{number}_" if model.is_sdxl else ""
            mapping.update((prefix + path.replace(".", "_"), m) for path, m in encoder.wrapped.named_modules())
        mapping.update((path.replace(".", "_"), module) for path, module in model.model.named_modules())
        model.network_layer_mapping = mapping

    def load_networks(self, names: Sequence[str]) -> None:
        self.loaded_networks[:] = names

    def network_apply_weights(self, module: nn.Module) -> None:
        assert not self.loaded_networks
        module.weight.copy_(module.network_weights_backup)
        module.network_current_names = ()

    def list_available_networks(self) -> None:
        for names in (self.available_networks, self.available_network_aliases):
            names.clear()
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in (".safetensors", ".pt"):
                metadata = self.metadata.get(path.stem, {})
                version = SdVersion.SDXL if metadata.get("ss_base_model_version") else SdVersion.Unknown
                entry = SimpleNamespace(name=path.stem, filename=str(path), metadata=metadata, sd_version=version)
                entry.alias = metadata.get("ss_output_name", path.stem)
                entry.get_alias = lambda entry=entry: entry.alias
                self.available_networks[path.stem] = entry
                self.available_network_aliases.update({path.stem: entry, entry.alias: entry})
