"""Merging on every family in the stand-alone host, and the file that comes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts.diffusers import DiffusersHost, load
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.output.saving import lora_metadata
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little
from tests.tiny_checkpoints import Tiny
from tests.tiny_hosts import Open, pipeline, predict, random_lora

one_of_each = pytest.mark.parametrize(
    "kind", [tiny.SD2_V, tiny.SDXL_V, tiny.REFINER, tiny.SDXL.inpainting()], ids=lambda kind: kind.name
)


@pytest.fixture(autouse=True)
def measured_on_little(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)


def merged(host: DiffusersHost, folder: Path, **changes: object) -> Merge:
    concepts = tuple(Concept(str(random_lora(folder / f"{n}.safetensors", host, seed=n))) for n in (1, 2))
    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    return merge_loras(MergeRequest(concepts, prompts=PROMPTS, recording=recording, **changes), host)


@pytest.mark.parametrize("kind", [tiny.REFINER, tiny.SDXL.inpainting()], ids=lambda kind: kind.name)
def test_a_weighted_sum_is_both_loras_applied(opened: Open, tmp_path: Path, kind: Tiny) -> None:
    host = opened(kind)
    done = merged(host, tmp_path, method="weighted_sum", precision="fp32", rank="full")
    with torch.no_grad():
        plain = predict(host, "a word1")
        with host.apply(done.inputs[0].deltas), host.apply({}):
            alone = predict(host, "a word1")
        with host.apply({key: (f, done.inputs[1].deltas[key]) for key, f in done.inputs[0].deltas.items()}):
            both = predict(host, "a word1")
        with host.apply(done.factors):
            found = predict(host, "a word1")
    torch.testing.assert_close(found, both, rtol=1e-3, atol=1e-4)
    assert min((plain - both).norm(), (alone - both).norm()) > 100 * (found - both).norm(), "control: both do something"


@pytest.mark.parametrize("kind", [tiny.SD2_V, tiny.SDXL_V], ids=lambda kind: kind.name)
def test_a_contrastive_merge_is_refined_and_leaves_the_model_as_it_was(
    opened: Open, tmp_path: Path, kind: Tiny
) -> None:
    host = opened(kind)
    models = [host.unet, host.vae, *(encoder.model for encoder in host.text_encoders)]
    before = [[tensor.clone() for tensor in model.state_dict().values()] for model in models]
    done = merged(host, tmp_path, options={"effort": "balanced", "steps": 2, "batch_size": 2})
    assert done.report.refinement["steps"] == 2
    assert set(done.factors) == {key for given in done.inputs for key in given.deltas}
    assert all(f.up.isfinite().all() and f.down.isfinite().all() for f in done.factors.values())
    assert all(concept.merged is not None for concept in done.report.concepts)
    after = [list(model.state_dict().values()) for model in models]
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))


@one_of_each
def test_gradients_reach_every_text_encoder_and_the_unet(opened: Open, tmp_path: Path, kind: Tiny) -> None:
    host = opened(kind)
    deltas = load_input(Concept(str(random_lora(tmp_path / "x.safetensors", host, seed=3))), host).deltas
    trained = {key: Factors(f.up.requires_grad_(), f.down.requires_grad_()) for key, f in deltas.items()}
    with host.apply(trained), host.recomputing():
        predict(host, "a cat", "a dog").square().mean().backward()
    # XL reads what enters the last layer of CLIP's text encoder, which is computed all the same
    unused = {key for key, f in trained.items() if not (f.up.grad is not None and f.up.grad.abs().max() > 0)}
    assert all(key.startswith(f"lora_te1_text_model_encoder_layers_{tiny.CLIP_LAYERS - 1}_") for key in unused)
    for prefix in (*host.family.text_encoders, "lora_unet_"):
        assert any(key.startswith(prefix) for key in trained.keys() - unused)


def test_a_layer_that_never_runs_is_left_out_and_named(opened: Open, tmp_path: Path) -> None:
    host = opened(tiny.SD2_V)
    idle = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    layer = host.layers()[idle]
    stand_in = torch.nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    host._layers = {**host.layers(), idle: type(layer).of(stand_in)}
    try:
        done = merged(host, tmp_path, options={"effort": "layers"})
    finally:
        host._layers[idle] = layer
    assert idle not in done.factors and len(done.factors) > 50
    assert any(
        re.search(rf"1 layers take no part in .*tiny-sd2-v.* left out \({idle}", w) for w in done.report.warnings
    )


@pytest.mark.parametrize(
    ("made_for", "width", "prefix"),
    [("SD1", 768, "lora_te_"), ("SD2", 1024, "lora_te_"), ("SDXL", 2048, "lora_te2_")],
)
@pytest.mark.parametrize("kind", [tiny.SD1, tiny.SD2_V, tiny.SDXL, tiny.REFINER], ids=lambda kind: kind.name)
def test_a_lora_of_another_family_is_refused_with_both_named(
    opened: Open, write_lora: Callable[..., Path], tmp_path: Path, made_for: str, width: int, prefix: str, kind: Tiny
) -> None:
    layers = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (320, width),
        f"{prefix}text_model_encoder_layers_0_mlp_fc1": (4 * width, width),
    }
    path = write_lora(tmp_path / "foreign.safetensors", layers)
    with pytest.raises(LoraclrError, match=rf"tiny.*\({kind.family}\).*LoRA for {made_for}: load such a checkpoint"):
        load_input(Concept(str(path)), opened(kind))


# -- the file


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (tiny.SD1, ("sd_v1", "False", "stable-diffusion-v1/lora", "epsilon")),
        (tiny.SD2.inpainting(), ("sd_v2", "True", "stable-diffusion-v2-512/lora", "epsilon")),
        (tiny.SD2_V, ("sd_v2_768_v", "True", "stable-diffusion-v2-768-v/lora", "v")),
        (tiny.SDXL, ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "epsilon")),
        (tiny.SDXL_V, ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "v")),
        (tiny.REFINER, ("sdxl_refiner_v1-0", "False", "stable-diffusion-xl-v1-refiner/lora", "epsilon")),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_the_file_says_which_family_it_is_for(opened: Open, tmp_path: Path, kind: Tiny, expected: tuple) -> None:
    host = opened(kind)
    metadata = lora_metadata(merged(host, tmp_path, method="weighted_sum"), "x")
    names = ("ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.prediction_type")
    assert tuple(metadata[name] for name in names) == expected


@pytest.mark.skipif(
    diffusers.__version__.startswith("0.31."), reason="diffusers 0.31 does not read conv_in and conv_out"
)
@pytest.mark.parametrize("kind", [tiny.SD2_V, tiny.SDXL], ids=lambda kind: kind.name)
def test_the_file_does_in_diffusers_what_the_merge_does(
    opened: Open, tmp_path: Path, kind: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    host = opened(kind)
    done = merged(host, tmp_path, method="weighted_sum", precision="fp32", rank="full")
    save_file(lora_tensors(done), tmp_path / "merged.safetensors")
    with torch.no_grad():
        plain = predict(host, "a cat")
        with host.apply(done.factors):
            ours = predict(host, "a cat")
    other = load(host.checkpoint)
    with caplog.at_level("WARNING"):
        pipeline(other).load_lora_weights(str(tmp_path), weight_name="merged.safetensors")
    assert "unexpected" not in caplog.text.lower() and "missing" not in caplog.text.lower()
    with torch.no_grad():
        theirs = predict(other, "a cat")
    assert (theirs - ours).norm() * 100 < (ours - plain).norm()
