"""The host adapter inside a real WebUI.

Needs `LORACLR_WEBUI_DIR`, the folder of an installed WebUI 1.10 (it is never fetched and nothing is written there), and
`LORACLR_WEBUI_PYTHON`, its interpreter, unless it is this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from webui_process import WebUI, demo_models, sdxl_loras, sdxl_models

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.request.merge_request import MergeRequest
from tests.tiny_checkpoints import CLIP_WIDTH, OPEN_CLIP_WIDTH

OUTCOMES = {"merge": "merged", "refine": "refined in 2 steps", "interrupt": "interrupted", "error": "on purpose"}
#: the WebUI's attention optimisations that run on the CPU, by the titles its settings show
ATTENTIONS = ("InvokeAI", "Doggettx", "V1 - original v1", "sub-quadratic", "sdp - scaled dot product")

pytestmark = pytest.mark.skipif(
    "LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to test in"
)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with the demo checkpoint."""
    folder: Path = tmp_path_factory.mktemp("sd1")
    demo_models(folder)
    webui = WebUI(folder)
    try:
        assert webui.ask("ready").startswith("emoji-sd1")
        yield webui
    finally:
        webui.close()


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with a tiny SDXL checkpoint, and LoRAs: `one`, `two` in kohya's key style, `three` in diffusers'."""
    folder: Path = tmp_path_factory.mktemp("sdxl")
    sdxl_models(folder)
    webui = WebUI(folder)
    try:
        assert webui.ask("ready").startswith("tiny-sdxl")
        sdxl_loras(webui, ("one", "two", "three"))
        yield webui
    finally:
        webui.close()


def test_the_host_tells_what_the_checkpoint_is(sd1: WebUI):
    told = sd1.ask("describe")
    assert (
        told["family"] == "SD1" and told["name"] == "a1111" and told["checkpoint"].startswith("emoji-sd1.safetensors")
    )
    assert told["size"] == 128 and told["latent"] == [4, 8] and told["prediction"] == "epsilon"


def test_layers_have_the_names_and_shapes_that_the_stand_alone_host_gives_them(sd1: WebUI, host: DiffusersHost):
    told = sd1.ask("describe")["layers"]
    assert told == {key: list(layer.shape) for key, layer in host.layers().items()}


def test_both_noise_schedules_are_the_same(sd1: WebUI, host: DiffusersHost):
    assert sd1.ask("describe")["alphas"] == pytest.approx(host.alphas_cumprod[[0, 500, 999]].tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["penguin", "pizza", "style-clay", "style-mono"])
def test_no_key_of_a_lora_is_left_unmatched(sd1: WebUI, name: str):
    found = sd1.ask("missing_keys", name=name)
    assert found["unknown"] == [] and found["keys"] == found["matched"] > 0


def test_deltas_are_those_that_the_webui_computes(sd1: WebUI):
    assert sd1.ask("delta_errors", name="penguin") < 1e-6


@pytest.mark.parametrize(("multiplier", "dyn"), [(1.0, 0), (-0.6, 0), (1.0, 2)])
def test_every_kind_of_network_has_the_webuis_delta(sd1: WebUI, multiplier: float, dyn: int):
    found = sd1.ask("kind_errors", multiplier=multiplier, dyn=dyn)
    assert len(found) > 200
    wrong = {name: values for name, values in found.items() if values[0] > values[1] + 1e-5 or values[2] > 1e-6}
    assert wrong == {}


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(("te", "unet"), [(1.0, 1.0), (0.5, -0.7), (0.0, 1.0)])
def test_a_lora_alone_does_what_the_webui_makes_it_do(sd1: WebUI, te: float, unet: float, functional: bool):
    found = sd1.ask("alone_like_the_webui", name="penguin", te=te, unet=unet, functional=functional)
    assert found["effect"] > 0.02, "control: the LoRA does something"
    assert found["error"] < 1e-4 and found["restored"] == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"CLIP_stop_at_last_layers": 2}, {"emphasis": "No norm"}, {"emphasis": "None"}, {"upcast_attn": True}],
    ids=str,
)
def test_a_prompt_is_encoded_and_denoised_as_in_a_generation(sd1: WebUI, options: dict):
    assert sd1.ask("sampler_prediction", prompt="a photo of a (cat:1.3) on a [red] background", **options) < 1e-5


def test_prompts_of_different_lengths_share_a_batch(sd1: WebUI):
    assert sd1.ask("mixed_lengths") < 1e-5


@pytest.mark.parametrize("work", ["merge", "refine", "interrupt", "error"])
@pytest.mark.parametrize("prompt", ["a cat", "a ohwx bird <lora:penguin:0.8>"])
def test_the_same_request_gives_the_same_picture_afterwards(sd1: WebUI, work: str, prompt: str):
    found = sd1.ask("untouched", prompt=prompt, work=work, names=["penguin", "pizza"])
    assert found == {"same": True, "clean": True, "outcome": OUTCOMES[work]}


def test_the_same_picture_afterwards_with_the_functional_way_of_applying_loras(sd1: WebUI):
    prompt = "a ohwx bird <lora:penguin:0.8>"
    found = sd1.ask("untouched", prompt=prompt, work="interrupt", names=["penguin", "pizza"], functional=True)
    assert found["same"] and found["clean"]


def test_interrupt_is_heard_after_the_current_evaluation(sd1: WebUI):
    found = sd1.ask("interrupted_by_button", names=[["penguin", "ohwx bird"], ["pizza", "vbk food"]])
    assert found["late"] <= 1 and found["lock_free"] and not found["job_after"]
    assert found["text"].startswith("recording the LoRAs ") and 0 < found["progress"] < 0.5


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_reach_every_layer_and_are_the_same_when_recomputed(sd1: WebUI, attention: str):
    found = sd1.ask("gradients", name="penguin", attention=attention)
    assert found["without"] == [] and found["layers"] > 200
    assert found["recomputed"] < 1e-5


def test_every_layer_is_recorded_and_projections_share_their_input(sd1: WebUI):
    found = sd1.ask("recorded", name="pizza")
    assert found["unseen"] == [] and found["wrong"] == []
    prefix = "lora_te_text_model_encoder_layers_0_self_attn"
    assert len({found["serves"][f"{prefix}_{letter}_proj"] for letter in "qkv"}) == 1
    assert found["serves"][f"{prefix}_out_proj"] == f"{prefix}_out_proj"


def test_retention_agrees_with_the_stand_alone_host(sd1: WebUI, host: DiffusersHost, demo: Path):
    named = [("penguin", "ohwx bird"), ("pizza", "vbk food")]
    changes = {"method": "contrastive", "options": {"effort": "layers"}}
    inside = sd1.ask("merge", names=named, **changes)["concepts"]
    small = {"recording": {"paths": 2, "steps": 2, "height": 128, "width": 128}, "memory_mb": 200}
    concepts = [{"lora": str(demo / "loras" / f"{name}.safetensors"), "trigger": trigger} for name, trigger in named]
    outside = merge_loras(MergeRequest.from_dict({"concepts": concepts, **small, **changes}), host).report.concepts
    for one, other in zip(inside, outside, strict=True):
        assert one["merged"] == pytest.approx(other.merged, abs=0.02)
        assert one["all_tags"] == pytest.approx(other.all_tags, abs=0.02)


def test_the_file_does_what_the_merge_in_memory_does(sd1: WebUI):
    names = [["penguin", "ohwx bird"], ["pizza", "vbk food"]]
    file = sd1.ask("merge", names=names, output="merges/average", method="average")["file"]
    assert file["alias"] == "average" and file["family"] == "SD1"
    assert file["error"] * 50 < file["effect"] and sd1.ask("missing_keys", name="average")["unknown"] == []


def test_a_weighted_sum_is_both_tags(sd1: WebUI):
    names = [["penguin", "ohwx bird"], ["pizza", "vbk food"]]
    sd1.ask("merge", names=names, output="sum", method="weighted_sum", rank="full", precision="fp32")
    both, tags = "a ohwx bird <lora:sum:1>", "a ohwx bird <lora:penguin:1><lora:pizza:1>"
    apart = sd1.ask("picture_distance", first=both, second=tags)
    assert apart <= 1
    for name in ("penguin", "pizza"):
        control = f"a ohwx bird <lora:{name}:1>"
        assert sd1.ask("picture_distance", first=both, second=control) >= 50 * max(apart, 1)


def test_bundled_embeddings_are_carried_over(sd1: WebUI):
    loras = sd1.folder / "models" / "Lora"
    embedding = {
        "bundle_emb.glimmer.string_to_param.*": torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    }
    save_file({**load_file(loras / "penguin.safetensors"), **embedding}, loras / "carrier.safetensors")
    names = [["carrier", "ohwx bird"], ["pizza", "vbk food"]]
    sd1.ask("merge", names=names, output="carried", method="weighted_sum", rank="full", precision="fp32")
    merged = "a glimmer <lora:carried:1>"
    assert sd1.ask("picture_distance", first=merged, second="a glimmer <lora:carrier:1><lora:pizza:1>") <= 1
    control = "a glimmer <lora:penguin:1><lora:pizza:1>"
    assert sd1.ask("picture_distance", first=merged, second=control) >= 50


def test_a_bundled_embedding_is_known_as_while_its_lora_is_active(sd1: WebUI):
    loras = sd1.folder / "models" / "Lora"
    vectors = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    tensors = {**load_file(loras / "penguin.safetensors"), "bundle_emb.glimmer.string_to_param.*": vectors}
    save_file(tensors, loras / "knowing.safetensors")
    found = sd1.ask("embeddings_like_the_webui", name="knowing", prompt="a photo of a (glimmer:1.2) on a road")
    assert found["error"] < 1e-5 and found["forgotten"] and found["warnings"] == []
    assert found["effect"] > 0.05, "control: without it the words mean something else"


def test_an_overwritten_lora_shows_its_new_picture(sd1: WebUI):
    first, second = ([[a, "ohwx bird"], ["pizza", "vbk food"]] for a in ("penguin", "fox-face"))
    prompt = "a ohwx bird <lora:{}:1>"
    sd1.ask("merge", names=first, output="again", method="weighted_sum")
    old = sd1.ask("picture", prompt=prompt.format("again"))
    sd1.ask("merge", names=second, output="again", method="weighted_sum", overwrite=True)
    new = sd1.ask("picture", prompt=prompt.format("again"))
    sd1.ask("merge", names=second, output="fresh", method="weighted_sum")
    assert new != old and new == sd1.ask("picture", prompt=prompt.format("fresh"))


def test_installed_loras_are_listed(sd1: WebUI):
    listed = {lora["name"]: lora for lora in sd1.ask("library")}
    assert listed["penguin"]["trigger"] == "ohwx bird" and listed["penguin"]["family"] == "SD1"
    assert listed["style-mono"]["folder"] == "style"
    assert sd1.ask("free_name", wanted="penguin") == "penguin-2"


def test_sparing_memory_changes_nothing(tmp_path: Path):
    """Under --lowvram parts of the model are moved by hooks; on the CPU to where they are, but through the same code."""
    demo_models(tmp_path)
    webui = WebUI(tmp_path, "--lowvram")
    try:
        found = webui.ask("alone_like_the_webui", name="penguin")
        assert found["error"] < 1e-4 < found["effect"]
        after = webui.ask("untouched", prompt="a cat", work="interrupt", names=["penguin", "pizza"])
        assert after["same"] and after["clean"]
    finally:
        webui.close()


# -- SDXL


def test_sdxl_is_told_from_sd1(sdxl: WebUI):
    told = sdxl.ask("describe")
    assert told["family"] == "SDXL" and told["size"] == 1024
    keys = set(told["layers"])
    for part in ("q", "k", "v", "out"):
        assert f"lora_te1_text_model_encoder_layers_0_self_attn_{part}_proj" in keys
        assert f"lora_te2_text_model_encoder_layers_0_self_attn_{part}_proj" in keys
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in keys
    assert told["aliases"]["lora_unet_down_blocks_1_attentions_0_proj_in"] == "lora_unet_input_blocks_4_1_proj_in"


@pytest.mark.parametrize("name", ["one", "three"])
def test_sdxl_keys_are_matched_in_both_styles(sdxl: WebUI, name: str):
    found = sdxl.ask("missing_keys", name=name)
    assert found["unknown"] == [] and found["keys"] == found["matched"] > 200
    assert sdxl.ask("delta_errors", name=name) < 1e-6


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(("name", "te", "unet"), [("one", 1.0, 1.0), ("two", 1.0, 0.0), ("three", 0.5, -0.7)])
def test_an_sdxl_lora_alone_does_what_the_webui_makes_it_do(
    sdxl: WebUI, name: str, te: float, unet: float, functional: bool
):
    found = sdxl.ask("alone_like_the_webui", name=name, te=te, unet=unet, functional=functional)
    assert found["error"] < 1e-4 and found["restored"] == 0
    assert found["effect"] > 0.02, "control: the LoRA does something"


@pytest.mark.parametrize("prompt", ["a photo of a (cat:1.3) on a [red] background", ""])
def test_sdxl_prompts_are_encoded_as_in_a_generation(sdxl: WebUI, prompt: str):
    assert sdxl.ask("sampler_prediction", prompt=prompt, sdxl_crop_top=8) < 1e-5


def test_sdxl_prompts_of_different_lengths_share_a_batch(sdxl: WebUI):
    assert sdxl.ask("mixed_lengths") < 1e-5


@pytest.mark.parametrize("work", ["merge", "refine", "interrupt", "error"])
def test_sdxl_gives_the_same_picture_afterwards(sdxl: WebUI, work: str):
    found = sdxl.ask("untouched", prompt="a cat <lora:one:0.8>", work=work, names=["one", "two"])
    assert found == {"same": True, "clean": True, "outcome": OUTCOMES[work]}


def test_sdxl_gradients_reach_both_text_encoders(sdxl: WebUI):
    found = sdxl.ask("gradients", name="one")
    # the first encoder's last layer is computed and not used: SDXL reads what enters it
    assert all(key.startswith("lora_te1_text_model_encoder_layers_3_") for key in found["without"])
    assert found["recomputed"] < 1e-5


def test_sdxl_packed_projections_are_recorded(sdxl: WebUI):
    found = sdxl.ask("recorded", name="one")
    assert found["unseen"] == [] and found["wrong"] == []
    prefix = "lora_te2_text_model_encoder_layers_1_self_attn"
    assert len({found["serves"][f"{prefix}_{letter}_proj"] for letter in "qkv"}) == 1
    assert found["serves"][f"{prefix}_out_proj"] == f"{prefix}_out_proj"
    assert found["packed_error"] < 1e-4


def test_sdxl_weighted_sum_is_both_tags(sdxl: WebUI):
    names = [["one", "alpha"], ["two", "beta"]]
    file = sdxl.ask("merge", names=names, output="sum", method="weighted_sum", rank="full", precision="fp32")["file"]
    assert file["family"] == "SDXL" and file["error"] * 50 < file["effect"]
    assert sdxl.ask("missing_keys", name="sum")["unknown"] == []
    apart = sdxl.ask("picture_distance", first="a cat <lora:sum:1>", second="a cat <lora:one:1><lora:two:1>")
    assert apart <= 1
    for name in ("one", "two"):
        assert sdxl.ask("picture_distance", first="a cat <lora:sum:1>", second=f"a cat <lora:{name}:1>") >= 50


def test_an_sdxl_embedding_reaches_both_text_encoders(sdxl: WebUI):
    loras, generator = sdxl.folder / "models" / "Lora", torch.Generator().manual_seed(1)
    vectors = {
        f"bundle_emb.glimmer.{part}": torch.randn(2, width, generator=generator)
        for part, width in (("clip_l", CLIP_WIDTH), ("clip_g", OPEN_CLIP_WIDTH))
    }
    save_file({**load_file(loras / "one.safetensors"), **vectors}, loras / "knowing.safetensors")
    found = sdxl.ask("embeddings_like_the_webui", name="knowing", prompt="a photo of a glimmer on a road")
    assert found["error"] < 1e-5 and found["forgotten"] and found["warnings"] == []
    assert found["effect"] > 0.05, "control: without it the words mean something else"


def test_sdxl_contrastive_keeps_more_than_the_average(sdxl: WebUI):
    names = [["one", "alpha"], ["two", "beta"]]

    def weakest(**changes) -> float:
        return min(concept["merged"] for concept in sdxl.ask("merge", names=names, **changes)["concepts"])

    assert weakest(method="contrastive", options={"effort": "layers"}) > weakest(method="average")
