"""What A1111's WebUI keeps of a LoRA file that was overwritten, and forgets when the new one is announced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from webui_stand_in import StandIn
from webui_stand_in_model import Model

from lib_loraclr.hosts import running


def announced(folder: Path) -> str:
    (folder / "merge.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return running.announce(folder / "merge.safetensors").name


def test_an_announced_lora_has_no_stale_copy(webui: StandIn, folder: Path):
    webui.networks.networks_in_memory["its-alias"] = SimpleNamespace(network_on_disk=SimpleNamespace(name="merge"))
    assert announced(folder) == "merge"
    assert webui.networks.networks_in_memory == {}


def test_a_checkpoint_that_is_held_besides_has_no_stale_copy_either(webui: StandIn, folder: Path):
    other = Model("SD1", 4)
    webui.networks.assign_network_names_to_compvis_modules(other)
    webui.sd_models.model_data.loaded_sd_models.append(other)
    layer = other.model.diffusion_model.out
    layer.network_weights_backup = layer.weight.detach().clone()
    layer.network_current_names = (("merge", 1.0, 1.0, None),)
    with torch.no_grad():
        layer.weight += 1
    announced(folder)
    assert layer.network_current_names == () and torch.equal(layer.weight, layer.network_weights_backup)
