"""What a merge can be saved as, loaded by a real WebUI. Needs what `test_real_webui.py` needs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
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


def test_a_file_of_norms_biases_and_whole_deltas_is_merged_as_both_tags_apply_it(webui: WebUI, folder: Path):
    layers = webui.ask("describe")["layers"]
    norms = [key for key, shape in layers.items() if re.search(r"unet.*norm\d?$", key) and shape[1] == 1]
    whole = [key for key in layers if re.search(r"unet.*(ff_net_2|_to_out_0)$", key) and f"{key}.bias" in layers]
    assert len(norms) > 30 and len(whole) > 10
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2 / (shape[1] ** 0.5 if len(shape) > 1 else 1)

    tensors = {}
    for key in norms:
        tensors |= {f"{key}.w_norm": random(layers[key][0]), f"{key}.b_norm": random(layers[key][0])}
    for key in whole:
        tensors |= {f"{key}.diff": random(*layers[key]), f"{key}.diff_b": random(layers[key][0])}
    save_file(tensors, folder / "models" / "Lora" / "vectors.safetensors", {"ss_network_module": "lycoris.kohya"})
    found = webui.ask("missing_keys", name="vectors")
    assert found["unknown"] == [] and found["keys"] == found["matched"] == len(norms) + len(whole)
    alone = webui.ask("alone_like_the_webui", name="vectors")
    assert alone["error"] < 1e-4 and alone["restored"] == 0 and alone["effect"] > 0.02

    names = [["vectors", "vector thing"], ["penguin", "ohwx bird"]]
    webui.ask("merge", names=names, output="vectors-sum", method="weighted_sum", rank="full", precision="fp32")
    assert webui.ask("missing_keys", name="vectors-sum")["unknown"] == []
    merged, tags = "a ohwx bird <lora:vectors-sum:1>", "a ohwx bird <lora:vectors:1><lora:penguin:1>"
    apart = webui.ask("picture_distance", first=merged, second=tags)
    assert apart <= 1
    for name in ("vectors", "penguin"):
        control = webui.ask("picture_distance", first=merged, second=f"a ohwx bird <lora:{name}:1>")
        assert control >= 50, name
