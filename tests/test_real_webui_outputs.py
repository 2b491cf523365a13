"""What a merge can be saved as, loaded by a real WebUI. Needs what `test_real_webui.py` needs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from webui_process import WebUI, demo_models

from lib_loraclr.hosts.diffusers import DiffusersHost

#: convolutions of 3x3, with and without stride, and one of one pixel, of the demo checkpoint
CONVOLUTIONS = (
    "lora_unet_conv_in",
    "lora_unet_down_blocks_0_resnets_0_conv1",
    "lora_unet_down_blocks_0_downsamplers_0_conv",
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_up_blocks_0_upsamplers_0_conv",
)

pytestmark = pytest.mark.skipif(
    "LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to test in"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def webui(folder: Path) -> Iterator[WebUI]:
    """A WebUI with the demo checkpoint."""
    demo_models(folder)
    webui = WebUI(folder)
    try:
        assert webui.ask("ready").startswith("emoji-sd1")
        yield webui
    finally:
        webui.close()


def test_a_baked_checkpoint_draws_what_the_tag_on_the_base_does(webui: WebUI, folder: Path):
    """Within what rounding the sum to the checkpoint's fp16 changes; the full file is loaded by the same picture."""
    names = [["penguin", "ohwx bird"], ["pizza", "vbk food"]]
    found = webui.ask("saved_ways", names=names, prompt="a photo of a ohwx bird", method="average")
    assert found["checkpoint"].startswith("baked.safetensors")
    assert found["apart"] < 0.1 * found["effect"] and found["apart"] < 2
    assert found["effect"] > 5, "control: the merge changes the picture"
    assert found["base_again"] == 0
    assert webui.ask("missing_keys", name="whole")["unknown"] == []
    checkpoints = folder / "models" / "Stable-diffusion"
    assert {path.name for path in checkpoints.glob("baked.*")} == {
        "baked.safetensors",
        "baked.json",
        "baked.yaml",
    }


def test_a_full_file_does_what_the_merge_in_memory_does(webui: WebUI):
    names = [["penguin", "ohwx bird"], ["pizza", "vbk food"]]
    file = webui.ask("merge", names=names, output="dense", method="average", save_as="full", precision="fp32")["file"]
    assert file["error"] * 50 < file["effect"] and file["family"] == "SD1"
    assert webui.ask("missing_keys", name="dense")["unknown"] == []


def test_a_locon_with_3x3_kernels_is_loaded(
    webui: WebUI, folder: Path, host: DiffusersHost, write_lora: Callable[..., Path]
):
    loras = folder / "models" / "Lora"
    layers = {key: tuple(host.layers()[key].weight.shape) for key in CONVOLUTIONS}
    for name in ("first", "second"):
        write_lora(loras / f"{name}.safetensors", layers)
    asked = {"method": "weighted_sum", "rank": "full", "precision": "fp32"}
    file = webui.ask("merge", names=[["first", "alpha"], ["second", "beta"]], output="kernels", **asked)["file"]
    assert file["error"] * 50 < file["effect"]
    assert webui.ask("missing_keys", name="kernels")["unknown"] == []
    with safe_open(str(loras / "kernels.safetensors"), framework="pt") as stored:
        told = stored.metadata()
        assert stored.get_tensor("lora_unet_conv_in.lora_down.weight").shape[1:] == (4, 3, 3)
    assert told["ss_network_module"] == "lycoris.kohya"
    assert json.loads(told["ss_network_args"])["algo"] == "locon"
