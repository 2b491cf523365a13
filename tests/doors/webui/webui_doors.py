"""What the tests of the WebUI's doors share: the stand-in with the modules that only the doors use, and LoRAs in it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file
from webui_stand_in import StandIn
from webui_stand_in_model import WIDTH

#: keys of the stand-in's SD1 model -> (d_out, d_in, …)
LAYERS = {
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (WIDTH, WIDTH),
    "lora_unet_conv_in": (WIDTH, 4, 3, 3),
    "lora_unet_down_blocks_0_attentions_0_attn1_to_q": (WIDTH, WIDTH),
}
#: a merge of the stand-in's model that takes a moment
SMALL = {
    "recording": {"paths": 2, "steps": 2, "renoised": 2, "height": 64, "width": 64},
    "memory_mb": 64,
    "method": "average",
}


class Doors:
    """The doors of a WebUI that is not there.

    Attributes:
        webui: the stand-in
        folder: where its LoRAs are
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *, lora: bool = True, **options: Any) -> None:
        """
        Args:
            lora: whether the built-in extension Lora is on
            options: of the command line
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.webui = StandIn(folder)
        self.reported: list[str] = []
        flags = {
            "api": True,
            "nowebui": False,
            "api_auth": None,
            "hide_ui_dir_config": False,
            "webui_is_non_local": False,
            "ui_settings_file": str(folder.parent / "config.json"),
        }
        flags |= options
        vars(self.webui.shared.cmd_opts).update(flags)
        self.webui.shared.opts.loraclr_work_limit = 0  # what is kept of one merge is for tests that ask for it
        self.webui.shared.state.interrupt = lambda: setattr(self.webui.shared.state, "interrupted", True)
        self.webui.errors = SimpleNamespace(report=lambda text, **_: self.reported.append(text))
        self.webui.progress = SimpleNamespace(current_task=None)
        self.webui.util = SimpleNamespace(open_folder=lambda path: self.reported.append(path))
        self.webui.call_queue.wrap_gradio_gpu_call = lambda function, extra_outputs: function
        self.webui.ui_components = MagicMock()
        self.webui.infotext_utils = SimpleNamespace(paste_fields={})
        self.webui.scripts = SimpleNamespace(scripts_data=[])
        self.webui.install(patch, lora=lora)
        if "gradio" not in sys.modules:
            gradio = ModuleType("gradio")
            gradio.update = lambda **values: values
            for name in ("Number", "Dropdown", "Radio", "Textbox", "Checkbox"):
                setattr(gradio, name, name)
            patch.setitem(sys.modules, "gradio", gradio)
        for name in [name for name in sys.modules if name.startswith("lib_loraclr.doors.webui")]:
            patch.delitem(sys.modules, name)
        self._patch = patch

    def module(self, name: str) -> ModuleType:
        """`lib_loraclr.doors.webui.<name>`, imported anew, as each test has a WebUI of its own."""
        whole = f"lib_loraclr.doors.webui.{name}"
        found = importlib.import_module(whole)
        self._patch.setitem(sys.modules, whole, found)
        return found

    def lora(self, name: str, *, seed: int = 0, **metadata: Any) -> Path:
        """Install a LoRA that fits the stand-in's model."""
        generator = torch.Generator().manual_seed(seed or sum(map(ord, name)))
        tensors = {}
        for key, (d_out, *d_in) in LAYERS.items():
            ones = (1,) * (len(d_in) - 1)
            tensors[f"{key}.lora_up.weight"] = torch.randn(d_out, 2, *ones, generator=generator) * 0.3
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, *d_in, generator=generator) * 0.3
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
        path = self.folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {key: str(value) for key, value in metadata.items()}
        save_file(tensors, path, told or None)
        self.webui.networks.metadata[path.stem] = told
        self.webui.networks.list_available_networks()
        return path


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doors:
    """A WebUI with three LoRAs: one with trigger words, one with only its name, one for another kind of checkpoint."""
    made = Doors(tmp_path / "Lora", monkeypatch)
    made.lora("fox", **{"modelspec.trigger_phrase": "sks animal", "modelspec.license": "MIT"})
    made.lora("animals/penguin", ss_output_name="pingu")
    made.lora("big", ss_base_model_version="sdxl_base_v1-0")
    return made
