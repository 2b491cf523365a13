"""The host adapter inside the real Forge, in Forge Neo and in reForge.

Needs `LORACLR_FORGE_DIR`, the folder of an installed Forge, `LORACLR_NEO_DIR`, that of Forge Neo, and `LORACLR_REFORGE_DIR`, that
of reForge; and in `LORACLR_FORGE_PYTHON` and so on their interpreters, unless they are this one. None of them is ever fetched,
and nothing is written there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from programs import FAMILY, REFORGE, Program
from safetensors.torch import load_file, save_file
from test_real_webui import OUTCOMES
from webui_process import WebUI, demo_models, sdxl_loras, sdxl_models

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.request.merge_request import MergeRequest

NAMES = [["penguin", "ohwx bird"], ["pizza", "vbk food"]]


@pytest.fixture(scope="module", params=FAMILY)
def program(request: pytest.FixtureRequest) -> Program:
    return request.param


@pytest.fixture(scope="module")
def sd1(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """With the demo checkpoint, which it loads when it is asked for."""
    folder: Path = tmp_path_factory.mktemp("forge-sd1")
    demo_models(folder)
    webui = WebUI(folder, program=program)
    try:
        assert webui.ask("ready").startswith("emoji-sd1")
        yield webui
    finally:
        webui.close()


@pytest.fixture(scope="module")
def sdxl(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """With a tiny SDXL checkpoint, and LoRAs: `one`, `two` in kohya's key style, `three` in diffusers'."""
    folder: Path = tmp_path_factory.mktemp("forge-sdxl")
    sdxl_models(folder)
    webui = WebUI(folder, program=program)
    try:
        assert webui.ask("ready").startswith("tiny-sdxl")
        sdxl_loras(webui, ("one", "two", "three"))
        yield webui
    finally:
        webui.close()


def test_the_host_tells_what_the_checkpoint_is(sd1: WebUI, host: DiffusersHost):
    told, name = sd1.ask("describe"), "reforge" if sd1.program is REFORGE else "forge"
    assert (told["family"], told["name"], told["prediction"]) == ("SD1", name, "epsilon")
    assert told["latent"] == [4, 8] and told["checkpoint"].startswith("emoji-sd1")
    assert told["alphas"] == pytest.approx(host.alphas_cumprod[[0, 500, 999]].tolist(), rel=1e-5)
    ours = {key: list(layer.shape) for key, layer in host.layers().items()}
    assert {key: ours[key] for key in told["layers"]} == told["layers"]
    # Forge reads no LoRA of the text encoder's norms
    assert all("layer_norm" in key for key in ours.keys() - told["layers"].keys())


@pytest.mark.parametrize("name", ["penguin", "style-mono"])
def test_no_key_of_a_lora_is_left_unmatched(sd1: WebUI, name: str):
    found = sd1.ask("missing_keys", name=name)
    assert found["unknown"] == [] and found["keys"] > 0


@pytest.mark.parametrize(("te", "unet"), [(1.0, 1.0), (0.5, -0.7), (0.0, 1.0)])
def test_a_lora_alone_does_what_forge_makes_it_do(sd1: WebUI, te: float, unet: float):
    found = sd1.ask("alone_like_forge", name="penguin", te=te, unet=unet)
    assert found["effect"] > 0.02, "control: the LoRA does something"
    assert found["error"] < 1e-4 and found["base_error"] < 1e-5 and found["restored"] == 0
    assert found["same weights"] and found["same prediction"]


@pytest.mark.parametrize(
    "options", [{}, {"CLIP_stop_at_last_layers": 2}, {"emphasis": "No norm"}, {"emphasis": "None"}], ids=str
)
def test_a_prompt_is_encoded_and_denoised_as_in_a_generation(sd1: WebUI, options: dict):
    assert sd1.ask("prompt_like_forge", prompt="a photo of a (cat:1.3) on a [red] background", **options) < 1e-5


def test_prompts_of_different_lengths_share_a_batch(sd1: WebUI):
    assert sd1.ask("mixed_lengths") < 1e-5


def test_gradients_are_those_of_the_loss_also_when_recomputed(sd1: WebUI):
    found = sd1.ask("finite_differences", name="penguin")
    _hold(found)
    assert found["layers"] > 200 and any(key.startswith("lora_te_") for key in found["errors"])


def _hold(found: dict) -> None:
    assert {key: errors for key, errors in found["errors"].items() if max(errors) > 0.02} == {}
    assert found["recomputed"] < 1e-3


def test_weights_and_modules_are_left_as_they_were(sd1: WebUI):
    found = sd1.ask("left_as_it_was", names=["penguin", "pizza"])
    assert found == {"LoRAs were in the weights": True, "refined": True, "failed": True}


@pytest.mark.parametrize("work", ["merge", "refine", "interrupt", "error"])
@pytest.mark.parametrize("prompt", ["a cat", "a ohwx bird <lora:penguin:0.8>"])
def test_the_same_request_gives_the_same_picture_afterwards(sd1: WebUI, work: str, prompt: str):
    found = sd1.ask("untouched", prompt=prompt, work=work, names=["penguin", "pizza"])
    assert found == {"same": True, "clean": True, "outcome": OUTCOMES[work]}


def test_the_last_pictures_tiling_does_not_count(sd1: WebUI):
    before = sd1.ask("prediction", prompts=["a cat", "a dog"])
    plain = sd1.ask("picture", prompt="a cat")
    tiled = sd1.ask("picture", prompt="a cat", tiling=True)
    assert sd1.ask("prediction", prompts=["a cat", "a dog"]) == before
    assert sd1.ask("picture", prompt="a cat") == plain
    assert tiled != plain or sd1.program is not REFORGE, "control: it tiles, which Forge does not"


def test_interrupt_is_heard_after_the_current_evaluation(sd1: WebUI):
    found = sd1.ask("interrupted_by_button", names=NAMES)
    assert found["late"] <= 1 and found["lock_free"] and not found["job_after"]


def test_every_layer_is_recorded_and_projections_share_their_input(sd1: WebUI):
    found = sd1.ask("recorded", name="pizza")
    assert found["unseen"] == [] and found["wrong"] == []
    prefix = "lora_te_text_model_encoder_layers_0_self_attn"
    assert len({found["serves"][f"{prefix}_{letter}_proj"] for letter in "qkv"}) == 1


def test_retention_agrees_with_the_stand_alone_host(sd1: WebUI, host: DiffusersHost, demo: Path):
    changes = {"method": "contrastive", "options": {"effort": "layers"}}
    inside = sd1.ask("merge", names=NAMES, **changes)["concepts"]
    concepts = [{"lora": str(demo / "loras" / f"{name}.safetensors"), "trigger": trigger} for name, trigger in NAMES]
    # Forge Neo's own setting is 2 from the start
    recording = {"paths": 2, "steps": 2, "height": 128, "width": 128, "clip_skip": sd1.ask("describe")["clip_skip"]}
    request = {"concepts": concepts, "recording": recording, "memory_mb": 200, **changes}
    outside = merge_loras(MergeRequest.from_dict(request), host).report.concepts
    for here, there in zip(inside, outside, strict=True):
        assert here["merged"] == pytest.approx(there.merged, abs=0.005)
        assert here["all_tags"] == pytest.approx(there.all_tags, abs=0.005)


def test_weighted_sum_is_both_tags_and_the_kept_file_is_the_result_in_memory(sd1: WebUI):
    found = sd1.ask("kept_like_memory", names=NAMES, output="sum", method="weighted_sum", rank="full", precision="fp32")
    assert found["effect"] > 0.02, "control: the merge does something"
    assert found["memory"] < 1e-3 and found["tags"] < 1e-3 and found["family"] == "SD1"
    assert sd1.ask("unknown_tensors", name="sum") == [], "Forge drops a file with a few of them"


def test_every_kind_of_tensor_that_is_written_is_read(sd1: WebUI):
    """A norm's weight and bias, a convolution, and a linear layer with its bias, which are written as whole deltas."""
    layers, loras = sd1.ask("describe")["layers"], sd1.folder / "models" / "Lora"
    tensors, generator = {}, torch.Generator().manual_seed(2)
    for name in ("down_blocks_0_attentions_0_norm", "down_blocks_0_resnets_0_norm1"):
        [width, _] = layers[f"lora_unet_{name}"]
        for part in ("w_norm", "b_norm"):
            tensors[f"lora_unet_{name}.{part}"] = torch.randn(width, generator=generator) * 0.2
    linear = "lora_unet_mid_block_resnets_0_time_emb_proj"  # one that the LoRA itself leaves alone
    tensors[f"{linear}.diff"] = torch.randn(layers[linear], generator=generator) * 0.05
    tensors[f"{linear}.diff_b"] = torch.randn(layers[linear][0], generator=generator) * 0.2
    save_file({**load_file(loras / "penguin.safetensors"), **tensors}, loras / "every-kind.safetensors")
    found = sd1.ask("alone_like_forge", name="every-kind")
    assert found["error"] < 1e-4
    names = [["every-kind", "ohwx bird"], ["pizza", "vbk food"]]
    whole = {"method": "weighted_sum", "rank": "full", "precision": "fp32"}
    found = sd1.ask("kept_like_memory", names=names, output="kinds", **whole)
    assert found["memory"] < 1e-3 and found["tags"] < 1e-3
    assert sd1.ask("unknown_tensors", name="kinds") == []
    written = load_file(loras / "kinds.safetensors").keys()
    assert {key.rpartition(".")[2] for key in written} >= {"w_norm", "b_norm", "diff", "diff_b"}, "control"


def test_a_contrastive_merge_that_is_kept_draws_what_was_in_memory(sd1: WebUI):
    found = sd1.ask("kept_like_memory", names=NAMES, output="contrast", options={"effort": "layers"})
    assert found["memory"] < 0.02 and found["tags"] > 5 * found["memory"], "control: it is not the tags' sum"


def test_bundled_embeddings_are_known_to_prompts_for_a_while(sd1: WebUI):
    loras = sd1.folder / "models" / "Lora"
    vectors = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    tensors = {**load_file(loras / "penguin.safetensors"), "bundle_emb.glimmer.string_to_param.*": vectors}
    save_file(tensors, loras / "knowing.safetensors")
    found = sd1.ask("embeddings_like_forge", name="knowing", prompt="a photo of a (glimmer:1.2) on a road")
    assert found["error"] < 1e-5 and found["forgotten"]
    assert "orge reads no embeddings that a LoRA bundles: " in found["warnings"][0]
    assert sd1.ask("unknown_tensors", name="knowing") == ["bundle_emb.glimmer.string_to_param.*"]
    assert found["effect"] > 0.05, "control: without it the words mean something else"


def test_an_overwritten_lora_shows_its_new_picture(sd1: WebUI):
    first, second = ([[a, "ohwx bird"], ["pizza", "vbk food"]] for a in ("penguin", "fox-face"))
    prompt = "a ohwx bird <lora:{}:1>"
    sum_ = {"method": "weighted_sum", "rank": "full", "precision": "fp32"}
    sd1.ask("kept_like_memory", names=first, output="again", **sum_)
    old = sd1.ask("picture", prompt=prompt.format("again"))
    sd1.ask("kept_like_memory", names=second, output="again", overwrite=True, **sum_)
    new = sd1.ask("picture", prompt=prompt.format("again"))
    sd1.ask("kept_like_memory", names=second, output="fresh", **sum_)
    assert new != old and new == sd1.ask("picture", prompt=prompt.format("fresh"))


def test_installed_loras_are_listed(sd1: WebUI):
    listed = {lora["name"]: lora for lora in sd1.ask("library")}
    assert listed["penguin"]["trigger"] == "ohwx bird" and listed["penguin"]["family"] == "SD1"
    assert listed["style-mono"]["folder"] == "style"
    assert sd1.ask("free_name", wanted="penguin") == "penguin-2"


# -- SDXL


def test_sdxl_is_told_from_sd1(sdxl: WebUI):
    told = sdxl.ask("describe")
    assert told["family"] == "SDXL" and told["size"] == 1024
    for encoder in ("te1", "te2"):
        for part in ("q", "k", "v", "out"):
            assert f"lora_{encoder}_text_model_encoder_layers_0_self_attn_{part}_proj" in told["layers"]
    assert told["aliases"]["lora_unet_down_blocks_1_attentions_0_proj_in"] == "lora_unet_input_blocks_4_1_proj_in"


@pytest.mark.parametrize(("name", "te", "unet"), [("one", 1.0, 1.0), ("two", 1.0, 0.0), ("three", 0.5, -0.7)])
def test_an_sdxl_lora_alone_does_what_forge_makes_it_do(sdxl: WebUI, name: str, te: float, unet: float):
    assert sdxl.ask("missing_keys", name=name)["unknown"] == []
    found = sdxl.ask("alone_like_forge", name=name, te=te, unet=unet)
    assert found["error"] < 1e-3 and found["base_error"] < 1e-5 and found["restored"] == 0
    assert found["effect"] > 0.02, "control: the LoRA does something"
    assert found["same weights"] and found["same prediction"]


@pytest.mark.parametrize("prompt", ["a photo of a (cat:1.3) on a [red] background", ""])
def test_sdxl_prompts_are_encoded_as_in_a_generation(sdxl: WebUI, prompt: str):
    assert sdxl.ask("prompt_like_forge", prompt=prompt, sdxl_crop_top=8) < 1e-5


def test_sdxl_gradients_reach_both_text_encoders_also_when_recomputed(sdxl: WebUI):
    found = sdxl.ask("finite_differences", name="one")
    _hold(found)
    for start in ("lora_te1_", "lora_te2_", "lora_unet_"):
        assert any(key.startswith(start) for key in found["errors"])


@pytest.mark.parametrize("work", ["merge", "refine"])
def test_sdxl_gives_the_same_picture_afterwards(sdxl: WebUI, work: str):
    found = sdxl.ask("untouched", prompt="a cat <lora:one:0.8>", work=work, names=["one", "two"])
    assert found == {"same": True, "clean": True, "outcome": OUTCOMES[work]}


def test_sdxl_weighted_sum_is_both_tags(sdxl: WebUI):
    names = [["one", "alpha"], ["two", "beta"]]
    found = sdxl.ask(
        "kept_like_memory", names=names, output="sum", method="weighted_sum", rank="full", precision="fp32"
    )
    assert found["family"] == "SDXL" and max(found["memory"], found["tags"]) < 2e-3 < found["effect"]
    assert not any(math.isnan(share) for share in found["concepts"] if share is not None)
