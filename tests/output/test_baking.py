"""A merge baked into a copy of the demo checkpoint: the numbers, what is left alone, the memory, and what a failure leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files import writing
from lib_loraclr.files.tensor_files import NewTensor, write_tensors
from lib_loraclr.hosts.diffusers import DiffusersHost, load
from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output import baking
from lib_loraclr.output.baking import BakedCheckpoint
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.saving import checkpoint_metadata, file_size, save_merge
from lib_loraclr.recording.sampling import initial_noise

MakeMerge = Callable[..., Merge]
CONV, LINEAR = "lora_unet_conv_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"


def baked_merge(make_merge: MakeMerge, **changes) -> Merge:
    """A merge of visible size, in fp32 as for a file of whole deltas."""
    merge = make_merge(precision="fp32", **changes)
    factors = {key: factors.scaled(0.02) for key, factors in merge.factors.items()}
    return replace(merge, request=replace(merge.request, save_as="checkpoint"), factors=factors)


def predict(host: Host, deltas: Mapping[str, Factors] | None = None) -> Tensor:
    with torch.no_grad(), host.apply(deltas or {}):
        return host.denoise(initial_noise(host, [7], 64, 64), torch.tensor([600]), host.encode(["a photo of a cat"]))


@pytest.fixture
def base(demo: Path) -> Path:
    return demo / "emoji-sd1.safetensors"


# The numbers


def test_the_baked_checkpoint_predicts_what_the_merge_on_the_base_does(
    make_merge: MakeMerge, host: DiffusersHost, demo: Path, tmp_path: Path
) -> None:
    merge = baked_merge(make_merge)
    shutil.copytree(demo / "clip", tmp_path / "clip")
    path, *_ = save_merge(merge, tmp_path / "zoo.safetensors")
    baked, expected, without = predict(load(path)), predict(host, merge.factors), predict(host)
    effect = float((expected - without).norm())
    # the demo's weights are fp16, so the sum of base and merge is rounded to eleven bits
    assert float((baked - expected).norm()) < 0.02 * effect
    assert effect > 0.05 * float(without.norm()), "control: the merge does something"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_sum_is_made_in_fp32_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    """Against the dense sum in float64; adding in the weight's own precision would be off by more."""
    name, key = "model.diffusion_model.input_blocks.1.1.proj_in.weight", "lora_unet_input_blocks_1_1_proj_in"
    weight = torch.randn(24, 16).to(dtype)
    save_file({name: weight}, tmp_path / "base.safetensors")
    factors = Factors(torch.randn(24, 3) * 0.1, torch.randn(3, 16) * 0.1)
    after = written(BakedCheckpoint(tmp_path / "base.safetensors", {key: factors}, 64), tmp_path)[name]
    exact = weight.double() + factors.up.double() @ factors.down.double()
    assert after.dtype == dtype
    # half a unit in the last place, and what fp32 adds where the sum lies between two numbers of the type
    half = torch.finfo(dtype).eps / 2 * (1 + 1e-2)
    slack = 4 * torch.finfo(torch.float32).eps if dtype == torch.float32 else 0
    assert bool(((after.double() - exact).abs() <= (half + slack) * exact.abs() + 1e-7).all())


LAYOUTS = {
    "SD1 text encoder": (
        "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight",
        ["lora_te_text_model_encoder_layers_3_mlp_fc1"],
    ),
    "SD1 text encoder, early files": (
        "cond_stage_model.transformer.encoder.layers.3.mlp.fc1.weight",
        ["lora_te_text_model_encoder_layers_3_mlp_fc1"],
    ),
    "SD2 text encoder": (
        "cond_stage_model.model.transformer.resblocks.3.mlp.c_proj.weight",
        ["lora_te_text_model_encoder_layers_3_mlp_fc2"],
    ),
    "SDXL first text encoder": (
        "conditioner.embedders.0.transformer.text_model.encoder.layers.3.self_attn.q_proj.weight",
        ["lora_te1_text_model_encoder_layers_3_self_attn_q_proj"],
    ),
    "SDXL second text encoder": (
        "conditioner.embedders.1.model.transformer.resblocks.30.attn.out_proj.weight",
        ["lora_te2_text_model_encoder_layers_30_self_attn_out_proj"],
    ),
    "UNet, diffusers' name": (
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
        ["lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"],
    ),
    "UNet, compvis' name": (
        "model.diffusion_model.middle_block.1.transformer_blocks.9.ff.net.0.proj.weight",
        ["lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj"],
    ),
    "packed projections": (
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        [f"lora_te2_text_model_encoder_layers_0_self_attn_{letter}_proj" for letter in "kvq"],
    ),
    "a bias": (
        "model.diffusion_model.input_blocks.4.0.in_layers.2.bias",
        ["lora_unet_down_blocks_1_resnets_0_conv1.bias"],
    ),
    "packed biases": (
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias",
        [f"lora_te2_text_model_encoder_layers_0_self_attn_{letter}_proj.bias" for letter in "kvq"],
    ),
}


@pytest.mark.parametrize(("name", "keys"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layer_is_found_in_every_family_s_file(tmp_path: Path, name: str, keys: list[str]) -> None:
    rows, columns = 12 * len(keys), 1 if name.endswith("bias") else 8
    weight, other = torch.randn(rows, columns), torch.randn(rows, 8)
    weight = weight.squeeze(1)  # a bias is a row of numbers
    save_file({name: weight, "first_stage_model.weight": other}, tmp_path / "base.safetensors")
    deltas = {key: Factors(torch.randn(12, 2), torch.randn(2, columns)) for key in keys}
    after = written(BakedCheckpoint(tmp_path / "base.safetensors", deltas, 64), tmp_path)
    # q, k and v lie in this order in the packed tensor, whatever the order of the deltas
    order = sorted(keys, key=lambda key: "qkv".find(key.removesuffix(".bias")[-6]))
    expected = torch.cat([deltas[key].dense() for key in order]).view_as(weight)
    assert torch.allclose(after[name], weight + expected, atol=1e-5)
    assert not torch.allclose(expected, torch.zeros_like(weight), atol=0.1), "control"
    assert torch.equal(after["first_stage_model.weight"], other)


def test_one_of_three_packed_projections_leaves_the_others_alone(tmp_path: Path) -> None:
    name, weight = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight", torch.randn(36, 8)
    save_file({name: weight}, tmp_path / "base.safetensors")
    delta = Factors(torch.randn(12, 2), torch.randn(2, 8))
    key = "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"
    after = written(BakedCheckpoint(tmp_path / "base.safetensors", {key: delta}, 64), tmp_path)[name]
    assert torch.equal(after[:12], weight[:12]) and torch.equal(after[24:], weight[24:])
    assert torch.allclose(after[12:24], weight[12:24] + delta.dense(), atol=1e-5)


def written(baked: BakedCheckpoint, folder: Path) -> dict[str, Tensor]:
    with (folder / "baked.safetensors").open("wb") as stream:
        write_tensors(stream, baked.tensors, lambda _: baked.metadata)
    return load_file(folder / "baked.safetensors")


# What is left alone


def test_all_else_is_the_base_s_bit_for_bit(make_merge: MakeMerge, base: Path, tmp_path: Path) -> None:
    merge = baked_merge(make_merge)
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    path, *others = save_merge(merge, tmp_path / "zoo.safetensors")
    old, new = load_file(base), load_file(path)
    assert {k: (t.dtype, t.shape) for k, t in old.items()} == {k: (t.dtype, t.shape) for k, t in new.items()}
    changed = {name for name in old if old[name].view(-1).ne(new[name].view(-1)).any()}
    assert len(changed) == len(merge.factors) == 3
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before
    assert {other.name for other in others} == {"zoo.json", "zoo.yaml"}
    assert (tmp_path / "zoo.yaml").read_bytes() == base.with_suffix(".yaml").read_bytes()
    assert file_size(merge) < path.stat().st_size < file_size(merge) + 200_000


def test_the_metadata_name_base_merge_and_content(make_merge: MakeMerge, tmp_path: Path) -> None:
    path, card, *_ = save_merge(baked_merge(make_merge), tmp_path / "zoo.safetensors")
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "zoo"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.merged_from"] == "emoji-sd1, fox, mono"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.resolution"] == "128x128", "kept of the base's own"
    assert json.loads(metadata["loraclr.request"])["save_as"] == "checkpoint"
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert set(json.loads(card.read_text("utf-8"))) == {"description", "notes"}


def test_what_the_base_said_of_its_content_is_not_said_of_the_copy(make_merge: MakeMerge) -> None:
    base = {
        "modelspec.hash_sha256": "0x1",
        "sshs_model_hash": "2",
        "modelspec.thumbnail": "data:",
        "modelspec.license": "A",
        "modelspec.author": "somebody",
    }
    merge = make_merge(metadata=({"modelspec.license": "B"}, {}))
    told = checkpoint_metadata(merge, "zoo", base)
    assert not {"modelspec.hash_sha256", "sshs_model_hash", "modelspec.thumbnail"} & set(told)
    assert told["modelspec.license"] == "A / B / not named" and told["modelspec.author"] == "somebody"


def test_the_same_merge_gives_the_same_bytes(make_merge: MakeMerge, tmp_path: Path) -> None:
    merge = baked_merge(make_merge)
    shuffled = replace(merge, factors=dict(reversed(merge.factors.items())))
    first, *_ = save_merge(merge, tmp_path / "1" / "zoo.safetensors")
    second, *_ = save_merge(shuffled, tmp_path / "2" / "zoo.safetensors")
    assert first.read_bytes() == second.read_bytes()


# Memory


def test_no_more_than_the_budget_is_read_at_once(
    make_merge: MakeMerge, host: DiffusersHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1 MB the file is written in small pieces, and holds the same numbers as with plenty."""
    merge = baked_merge(make_merge)
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    budget, largest = 1, 0
    read = baking._read

    def watching(stream, size: int) -> bytes:
        nonlocal largest
        largest = max(largest, size)
        return read(stream, size)

    monkeypatch.setattr(baking, "_read", watching)
    monkeypatch.setattr(baking, "MEGABYTE", 1 << 14)
    small = replace(merge, request=replace(merge.request, memory_mb=budget))
    path, *_ = save_merge(small, tmp_path / "small.safetensors")
    assert largest <= budget << 14
    assert largest < host.layers()[key].weight.numel() * 2, "control: a layer is larger than what is read at once"
    monkeypatch.undo()
    plenty, *_ = save_merge(merge, tmp_path / "plenty.safetensors")
    few, many = load_file(path), load_file(plenty)
    for name, tensor in few.items():
        assert torch.allclose(tensor.double(), many[name].double(), rtol=1e-3, atol=1e-6), name


# What a failure leaves


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device"), LoraclrError("stop")])
def test_an_interrupted_write_leaves_nothing(
    make_merge: MakeMerge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure
) -> None:
    calls, read = 0, baking._read

    def failing(stream, size: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 40:
            assert [path for path in tmp_path.rglob("*.tmp") if path.stat().st_size > 0], "control: it had begun"
            raise failure
        return read(stream, size)

    merge = baked_merge(make_merge)
    monkeypatch.setattr(baking, "_read", failing)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else LoraclrError
    with pytest.raises(expected):
        save_merge(merge, tmp_path / "out" / "zoo.safetensors")
    assert calls == 40 and list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_written(
    make_merge: MakeMerge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        LoraclrError, match=r"zoo\.safetensors would take 0\.\d+ GB, and .* has 0\.00 GB left: free some"
    ):
        save_merge(baked_merge(make_merge), tmp_path / "zoo.safetensors")
    assert not list(tmp_path.glob("*zoo*"))


@pytest.mark.parametrize("way", ["itself", "a link", "a hard link"])
def test_the_checkpoint_itself_is_never_written_to(make_merge: MakeMerge, demo: Path, tmp_path: Path, way: str) -> None:
    base = tmp_path / "base.safetensors"
    shutil.copyfile(demo / "emoji-sd1.safetensors", base)
    path = base if way == "itself" else tmp_path / "other.safetensors"
    if way == "a link":
        path.symlink_to(base)
    if way == "a hard link":
        path.hardlink_to(base)
    before = base.read_bytes()
    for save_as in ("checkpoint", "lora"):
        merge = baked_merge(make_merge)
        request, target = replace(merge.request, save_as=save_as), replace(merge.target, path=base)
        with pytest.raises(LoraclrError, match="is the checkpoint itself, which is never written to"):
            save_merge(replace(merge, request=request, target=target), path, overwrite=True)
    assert base.read_bytes() == before


# What cannot be baked into


def refused(base: Path, deltas: Mapping[str, Factors]) -> str:
    with pytest.raises(LoraclrError) as refusal:
        BakedCheckpoint(base, deltas, 64)
    return str(refusal.value)


def test_what_cannot_be_baked_into_is_refused_by_name(tmp_path: Path) -> None:
    name, key = "model.diffusion_model.input_blocks.1.1.proj_in.weight", "lora_unet_input_blocks_1_1_proj_in"
    delta = Factors(torch.ones(4, 1), torch.ones(1, 4))
    base = tmp_path / "base.safetensors"
    save_file({name: torch.zeros(4, 4, dtype=torch.float8_e4m3fn)}, base)
    assert "keeps model.diffusion_model.input_blocks.1.1.proj_in.weight as F8_E4M3, too coarse" in refused(
        base, {key: delta}
    )
    save_file({name: torch.zeros(4, 5)}, base)
    assert f"has {key} as [4, 5], the merge as [4, 4]" in refused(base, {key: delta})
    save_file({"down_blocks.0.weight": torch.zeros(4, 4)}, base)
    assert f"holds no tensor for the layer {key}" in refused(base, {key: delta})
    assert "is a diffusers folder" in refused(tmp_path, {})
    (tmp_path / "base.ckpt").touch()
    assert "is a pickle (.ckpt)" in refused(tmp_path / "base.ckpt", {})


def test_a_sum_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    name, key = "model.diffusion_model.input_blocks.1.1.proj_in.weight", "lora_unet_input_blocks_1_1_proj_in"
    save_file({name: torch.full((4, 4), 60000.0).half()}, tmp_path / "base.safetensors")
    delta = Factors(torch.full((4, 1), 100.0), torch.full((1, 4), 100.0))
    with pytest.raises(LoraclrError, match=f"merged {key} does not fit into F16: use a copy .* in bf16 or fp32"):
        written(BakedCheckpoint(tmp_path / "base.safetensors", {key: delta}, 64), tmp_path)


def test_writing_takes_one_tensor_at_a_time(tmp_path: Path) -> None:
    """A tensor's bytes are asked for when those before it are written, and the header comes first."""
    asked: list[str] = []

    def chunks(name: str):
        asked.append(f"{name} at {stream.tell()}")
        yield b"1234"
        yield b"5678"

    tensors = [NewTensor(name, "U8", (8,), 8, lambda name=name: chunks(name)) for name in ("a", "b")]
    with (tmp_path / "file.safetensors").open("wb") as stream:
        write_tensors(stream, tensors, lambda digest: {"hash": digest})
        begins = int(asked[0].rpartition(" ")[2])
    assert asked == [f"a at {begins}", f"b at {begins + 8}"] and begins > 8
    assert load_file(tmp_path / "file.safetensors")["b"].tolist() == list(b"12345678")
