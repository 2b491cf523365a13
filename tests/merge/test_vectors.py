"""Norms and biases: vectors that merge as layers whose one input is always 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_loraclr.files.tensor_files import read_header
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.checkpoint_layers import find_places
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.merged_tensors import full_tensors, lora_tensors
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from lib_loraclr.solving.layer_problem import LayerProblem, Recording
from lib_loraclr.solving.methods.ridge import RidgeOptions, ridge
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, made_on, measure_on_little

NORM = "lora_unet_mid_block_resnets_0_norm1"
TEXT_NORM = "lora_te_text_model_encoder_layers_0_layer_norm1"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
CONV = "lora_unet_mid_block_resnets_0_conv1"
#: layer -> what a file calls its weight's and its bias' delta
NAMES = {NORM: ("w_norm", "b_norm"), TEXT_NORM: ("w_norm", "b_norm"), FC1: ("diff", "diff_b"), CONV: ("diff", "diff_b")}


def written(folder: Path, host: DiffusersHost, seed: int) -> Path:
    """A file that changes two norms, a linear layer and a convolution, each with its bias."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, names in NAMES.items():
        for part, name in zip((key, f"{key}.bias"), names, strict=True):
            shape = host.layers()[part].weight.shape
            tensors[f"{key}.{name}"] = torch.randn(shape, generator=generator) / 20
    save_file(tensors, folder / f"vectors{seed}.safetensors")
    return folder / f"vectors{seed}.safetensors"


def predict(host: DiffusersHost) -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return host.denoise(x, torch.tensor([500]), host.encode(["a photo of a cat"]))


@pytest.fixture(scope="module", autouse=True)
def measured_on_little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        yield


@pytest.fixture(scope="module")
def paths(host: DiffusersHost, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [written(tmp_path_factory.mktemp("vectors"), host, seed) for seed in (1, 2)]


def merged(host: DiffusersHost, paths: list[Path], **changes) -> Merge:
    concepts = tuple(Concept(str(path), trigger=f"{path.stem} thing") for path in paths)
    little = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    return merge_loras(MergeRequest(concepts, prompts=PROMPTS, recording=little, **changes), host)


def test_a_file_of_vectors_does_what_changed_parameters_do(host: DiffusersHost, paths: list[Path]) -> None:
    given = load_input(Concept(str(paths[0]), trigger="x"), host)
    assert set(given.deltas) == {part for key in NAMES for part in (key, f"{key}.bias")}
    before = predict(host)
    with host.apply(given.deltas):
        applied = predict(host)
    saved = {key: host.layers()[key].weight.detach().clone() for key in given.deltas}
    try:
        for key, factors in given.deltas.items():
            host.layers()[key].weight.data += factors.dense().view_as(saved[key])
        changed = predict(host)
    finally:
        for key, weight in saved.items():
            host.layers()[key].weight.data = weight
    assert torch.allclose(applied, changed, atol=1e-5)
    assert not torch.allclose(applied, before, atol=1e-3), "control: it does something"
    assert torch.equal(predict(host), before)


def test_their_sum_is_written_as_the_webui_reads_it(host: DiffusersHost, paths: list[Path], tmp_path: Path) -> None:
    merge = merged(host, paths, method="weighted_sum", precision="fp32", rank="full")
    tensors = lora_tensors(merge)
    assert set(tensors) == {f"{key}.{name}" for key, names in NAMES.items() for name in names}
    save_file(tensors, tmp_path / "merged.safetensors")
    again = load_input(Concept(str(tmp_path / "merged.safetensors"), trigger="x"), host).deltas
    for key, factors in again.items():
        expected = sum(load_input(c, host).deltas[key].dense() for c in merge.request.concepts)
        assert torch.allclose(factors.dense(), expected, atol=1e-5), key
    assert {tensor.name for tensor in full_tensors(merge)} == set(tensors)


@pytest.mark.parametrize("method", ["contrastive", "paper", "average"])
def test_every_method_merges_them(host: DiffusersHost, paths: list[Path], method: str) -> None:
    options = {"effort": "layers"} if method == "contrastive" else {}
    merge = merged(host, paths, method=method, options=options)
    assert set(merge.factors) == {part for key in NAMES for part in (key, f"{key}.bias")}
    assert all(merge.factors[key].rank == 1 for key in (NORM, f"{NORM}.bias", f"{FC1}.bias"))


def test_learnt_vectors_are_the_mean_by_importance_and_size() -> None:
    """`argmin Σ c_i ||d - d_i||² / e_i + λ ||d - mean||²`, solved by hand: `e_i = ||d_i||²`, their mean for the rows without
    trigger, whose target is 0."""
    first, second = torch.randn(2, 6, dtype=torch.float64)
    deltas = tuple(Factors(d[:, None], torch.ones(1, 1, dtype=torch.float64)) for d in (first, second))
    ones = torch.ones(5, 1, dtype=torch.float64)
    rows = (Recording(ones, (0,), 1.0), Recording(ones[:2], (1,), 3.0), Recording(ones, (), 2.0))
    found = ridge(LayerProblem("norm", deltas, rows), RidgeOptions(ridge=0.5)).factors.dense().flatten()
    sizes = [float(d.square().sum()) for d in (first, second)]
    weights = [1.0 / sizes[0], 3.0 / sizes[1], 2.0 / (sum(sizes) / 2)]
    total = sum(weights)
    own = weights[0] * first + weights[1] * second
    expected = (own + 0.5 * total * (first + second) / 2) / (total + 0.5 * total)
    assert torch.allclose(found, expected)


def test_a_checkpoint_has_a_place_for_each(host: DiffusersHost) -> None:
    keys = [part for key in NAMES for part in (key, f"{key}.bias")]
    places = find_places(read_header(host.checkpoint_path).tensors, keys)
    assert {key: place.tensor.shape for key, place in places.items()} == {
        key: tuple(host.layers()[key].weight.shape) for key in keys
    }


def test_biases_a_lora_cannot_change_are_listed(host: DiffusersHost, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    shape = host.layers()[key].weight.shape
    save_file({f"{key}.diff": torch.ones(shape), f"{key}.diff_b": torch.ones(shape[0])}, tmp_path / "a.safetensors")
    given = load_input(Concept(str(tmp_path / "a.safetensors"), trigger="a"), host)
    assert set(given.deltas) == {key}
    named = f"{key}.diff_b (the layer has no bias that a LoRA can change)"
    assert any(named in warning for warning in given.warnings)


def test_a_norm_whose_bias_is_not_changed_is_written_as_the_webui_loads_it(host: DiffusersHost, make_merge) -> None:
    """`w_norm` without `b_norm` makes the WebUI refuse the whole file."""
    norm = "lora_unet_down_blocks_0_attentions_0_norm"
    size = host.layers()[norm].shape[0]
    weight, bias = Factors(torch.randn(size, 1), torch.ones(1, 1)), Factors(torch.randn(size, 1), torch.ones(1, 1))
    merge = make_merge(precision="bf16")
    alone = lora_tensors(made_on(merge, host, {norm: weight}))
    assert set(alone) == {f"{norm}.diff"} and alone[f"{norm}.diff"].dtype == torch.float32
    both = lora_tensors(made_on(merge, host, {norm: weight, f"{norm}.bias": bias}))
    assert set(both) == {f"{norm}.w_norm", f"{norm}.b_norm"}
    assert torch.equal(both[f"{norm}.w_norm"], weight.up.flatten())


def test_attention_that_the_webui_adds_only_whole_is_completed(opened, make_merge) -> None:
    sdxl, merge = opened(tiny.SDXL), make_merge(precision="fp32")
    attention = "lora_te2_text_model_encoder_layers_0_self_attn_"
    factors = {}
    for key in (f"{attention}q_proj", attention.replace("te2", "te1") + "q_proj"):
        d_out, d_in = sdxl.layers()[key].shape
        factors[key] = Factors(torch.randn(d_out, 2), torch.randn(2, d_in))
    merge = made_on(merge, sdxl, factors)
    tensors = lora_tensors(merge)
    ups = {name.split(".")[0]: tensor for name, tensor in tensors.items() if "lora_up" in name}
    completed = {f"{attention}{letter}_proj" for letter in ("k", "v", "out")}
    assert set(ups) == {*factors, *completed}, "those of OpenCLIP's encoder alone"
    assert not any(ups[key].any() for key in completed) and ups[f"{attention}q_proj"].any()
    names = {tensor.name for tensor in full_tensors(merge)}
    assert {f"{key}.diff" for key in (*factors, *completed)} == names
