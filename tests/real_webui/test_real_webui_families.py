"""The other families inside a real WebUI: one process that is switched from checkpoint to checkpoint.

Needs what `test_real_webui.py` needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from webui_process import Failed, WebUI, tiny_loras, tiny_models

from lib_loraclr.hosts.diffusers import load
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Tiny

pytestmark = pytest.mark.skipif(
    "LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to test in"
)
#: in an order in which neighbours share no configuration
KINDS = (tiny.SD2_V, tiny.SD1.inpainting(), tiny.REFINER, tiny.SDXL.inpainting())
METADATA = {
    "SD1": {"ss_base_model_version": "sd_v1"},
    "SD2": {"ss_v2": "True"},
    "SDXL": {"ss_base_model_version": "sdxl_base_v1-0"},
    "SDXL refiner": {"ss_base_model_version": "sdxl_refiner_v1-0"},
}
Loaded = Callable[[Tiny], WebUI]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Loaded]:
    """The WebUI with a checkpoint loaded, and LoRAs for it."""
    tiny_models(folder, *KINDS)
    webui = WebUI(folder)

    def with_(kind: Tiny) -> WebUI:
        if not webui.ask("ready").startswith(f"{kind.name}.safetensors"):
            assert webui.ask("switch", checkpoint=f"{kind.name}.safetensors").startswith(f"{kind.name}.safetensors")
            if not (folder / "models" / "Lora" / f"{kind.name}-one.safetensors").exists():
                named = [f"{kind.name}-{name}" for name in ("one", "two", "three")]
                tiny_loras(webui, named, METADATA[kind.family])
        return webui

    try:
        webui.ask("ready")
        yield with_
    finally:
        webui.close()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name, scope="module")
def kind(request: pytest.FixtureRequest) -> Tiny:
    return request.param


def names(kind: Tiny) -> list[list[str]]:
    return [[f"{kind.name}-one", "alpha"], [f"{kind.name}-two", "beta"]]


def test_the_tiny_checkpoint_has_the_webuis_own_names(loaded: Loaded, kind: Tiny) -> None:
    assert loaded(kind).ask("strange_keys") == []


def test_the_host_tells_what_the_checkpoint_is(loaded: Loaded, kind: Tiny) -> None:
    told = loaded(kind).ask("describe")
    assert told["family"] == kind.family and told["inpainting"] == (kind.sizes.inputs == 9)
    assert told["prediction"] == ("v_prediction" if kind.velocity else "epsilon")


def test_the_stand_alone_host_has_the_same_layers_and_predicts_the_same(
    loaded: Loaded, folder: Path, kind: Tiny
) -> None:
    webui, host = loaded(kind), load(folder / "models" / "Stable-diffusion" / f"{kind.name}.safetensors")
    told = webui.ask("describe")
    outside = {key: list(layer.shape) for key, layer in host.layers().items()}
    if kind is tiny.REFINER:  # the WebUI leads no file to its text encoder
        outside = {key: shape for key, shape in outside.items() if key.startswith("lora_unet_")}
    assert {key: shape for key, shape in told["layers"].items() if key not in told["idle"]} == outside
    prompts = ["a photo of a cat", ""]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    with torch.no_grad():
        expected = host.denoise(x, torch.tensor([700, 250]), host.encode(prompts))
        other = host.denoise(x, torch.tensor([700, 250]), host.encode(["a dog", ""]))
    found = torch.tensor(webui.ask("prediction", prompts=prompts))
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert (found - expected).norm() * 10 < (other - expected).norm(), "control: the prompt counts"


def test_a_prompt_is_encoded_and_denoised_as_in_a_generation(loaded: Loaded, kind: Tiny) -> None:
    for prompt in ("a photo of a (cat:1.3) on a [red] background", ""):
        assert loaded(kind).ask("sampler_prediction", prompt=prompt) < 1e-5


def test_no_key_of_a_lora_is_left_unmatched_in_either_style(loaded: Loaded, kind: Tiny) -> None:
    for name in ("one", "three"):
        found = loaded(kind).ask("missing_keys", name=f"{kind.name}-{name}")
        assert found["unknown"] == [] and found["keys"] == found["matched"] > 20


def test_a_lora_alone_does_what_the_webui_makes_it_do(loaded: Loaded, kind: Tiny) -> None:
    found = loaded(kind).ask("alone_like_the_webui", name=f"{kind.name}-one", te=0.5, unet=0.8)
    assert found["error"] < 1e-4 and found["restored"] == 0
    assert found["effect"] > 0.01, "control: the LoRA does something"


@pytest.mark.parametrize("work", ["merge", "refine"])
def test_the_same_picture_comes_afterwards(loaded: Loaded, kind: Tiny, work: str) -> None:
    both = [name for name, _ in names(kind)]
    found = loaded(kind).ask("untouched", prompt=f"a cat <lora:{both[0]}:0.8>", work=work, names=both)
    assert found["same"] and found["clean"]


def test_gradients_reach_every_layer_that_runs(loaded: Loaded, kind: Tiny) -> None:
    found = loaded(kind).ask("gradients", name=f"{kind.name}-one")
    # XL reads what enters the last layer of its first text encoder
    assert all(
        key.startswith(f"lora_te1_text_model_encoder_layers_{tiny.CLIP_LAYERS - 1}_") for key in found["without"]
    )
    assert found["recomputed"] < 1e-5


def test_a_weighted_sum_is_both_tags_and_the_file_is_listed_under_its_family(loaded: Loaded, kind: Tiny) -> None:
    webui, output = loaded(kind), f"{kind.name}-sum"
    exact = {"method": "weighted_sum", "rank": "full", "precision": "fp32"}
    file = webui.ask("merge", names=names(kind), output=output, **exact)["file"]
    assert file["family"] == kind.family and file["error"] * 50 < file["effect"]
    assert webui.ask("missing_keys", name=output)["unknown"] == []
    one, two = (f"<lora:{name}:1>" for name, _ in names(kind))
    both = f"a cat <lora:{output}:1>"
    apart = webui.ask("picture_distance", first=both, second=f"a cat {one}{two}")
    assert apart <= 1
    assert webui.ask("picture_distance", first=both, second=f"a cat {one}") >= 10 * max(1, apart)


def test_a_lora_of_another_family_is_refused_with_both_named(loaded: Loaded) -> None:
    webui = loaded(tiny.SD2_V)
    foreign = [[f"{tiny.REFINER.name}-one", "alpha"], [f"{tiny.SD2_V.name}-one", "beta"]]
    with pytest.raises(Failed, match=r"does not fit tiny-sd2-v\.safetensors.*\(SD2\)"):
        webui.ask("merge", names=foreign)
