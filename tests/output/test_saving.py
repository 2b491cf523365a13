"""The merged LoRA as files: what it says of itself, and that its tensors are the merge."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.deltas import layer_delta
from lib_loraclr.files.lora_files import read_lora, read_tensors
from lib_loraclr.files.tensor_files import DTYPES
from lib_loraclr.files.training import clip_skip
from lib_loraclr.files.triggers import Trigger, find_trigger, tag_frequency
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged import Merge, Target
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.output.saving import file_size, lora_metadata, read_recipe, save_merge, user_card
from tests.small import made_on

MakeMerge = Callable[..., Merge]

CONV, LINEAR = "lora_unet_conv_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"
EMBEDDING = "bundle_emb.sks.string_to_param.*"


# Its tensors


@pytest.mark.parametrize("precision", DTYPES)
def test_the_file_holds_the_very_merge_with_alpha_equal_to_the_rank(
    make_merge: MakeMerge, host: DiffusersHost, tmp_path: Path, precision: str
) -> None:
    merge = make_merge(precision=precision, rank=5)
    (path, _) = save_merge(merge, tmp_path / "zoo.safetensors")
    file = read_lora(path)
    assert set(file.layers) == set(merge.factors)
    assert (file.unknown, file.embeddings) == ((), {})
    for key, factors in merge.factors.items():
        stored = file.layers[key]
        assert float(stored["alpha"]) == stored["lora_down.weight"].shape[0] == factors.rank == 5
        assert stored["lora_up.weight"].dtype == DTYPES[precision]
        read = layer_delta(key, stored, "zoo", host.layers()[key].weight).factors
        assert torch.equal(read.up, factors.up.float())
        assert torch.equal(read.down, factors.down.float())


@pytest.mark.parametrize("precision", DTYPES)
def test_alpha_is_exact_at_any_rank(make_merge: MakeMerge, precision: str) -> None:
    """bfloat16 has no 257, fp16 no 2049; an alpha that is rounded would scale the whole layer."""
    for rank in (257, 2049):
        tensors = lora_tensors(make_merge(precision=precision, rank=rank))
        assert float(tensors[f"{LINEAR}.alpha"]) == rank


def test_shapes_are_those_of_kohyas_files(make_merge: MakeMerge) -> None:
    tensors = lora_tensors(make_merge(rank=3))
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert shapes[f"{CONV}.lora_up.weight"] == [64, 3, 1, 1]
    assert shapes[f"{CONV}.lora_down.weight"] == [3, 4, 3, 3]
    assert shapes[f"{LINEAR}.lora_up.weight"] == [512, 3]
    assert shapes[f"{LINEAR}.lora_down.weight"] == [3, 128]
    assert shapes[f"{LINEAR}.alpha"] == []


def whole(merge: Merge, precision: str = "fp16") -> Merge:
    """The merge as one that is saved as whole deltas."""
    factors = {key: factors.to(torch.float32) for key, factors in merge.factors.items()}
    return replace(merge, request=replace(merge.request, save_as="full", precision=precision), factors=factors)


@pytest.mark.parametrize("precision", DTYPES)
def test_a_full_file_holds_every_layer_s_whole_delta_rounded_once(
    make_merge: MakeMerge, host: DiffusersHost, tmp_path: Path, precision: str
) -> None:
    mine = torch.randn(2, 8)
    merge = whole(make_merge(precision="fp32", extra=({EMBEDDING: mine}, {})), precision)
    path, *_ = save_merge(merge, tmp_path / "zoo.safetensors")
    tensors, metadata = read_tensors(path)
    assert set(tensors) == {f"{key}.diff" for key in merge.factors} | {EMBEDDING}
    assert torch.equal(tensors[EMBEDDING], mine)
    for key, factors in merge.factors.items():
        stored, exact = tensors[f"{key}.diff"], factors.up.double() @ factors.down.double()
        assert stored.shape == host.layers()[key].weight.shape and stored.dtype == DTYPES[precision]
        step = torch.finfo(stored.dtype).eps
        assert float((stored.double().view_as(exact) - exact).abs().max()) <= step * float(exact.abs().max())
    data = path.read_bytes()[8 + int.from_bytes(path.read_bytes()[:8], "little") :]
    assert metadata["sshs_model_hash"] == read_lora(path).hash == hashlib.sha256(data).hexdigest()
    assert file_size(merge) == len(data)
    assert file_size(make_merge()) < len(data) / 3, "control: a LoRA is much smaller"


def test_a_whole_delta_that_does_not_fit_is_refused_and_nothing_stays(make_merge: MakeMerge, tmp_path: Path) -> None:
    merge = whole(make_merge(precision="fp32"))
    merge = replace(merge, factors={key: factors.scaled(1e6) for key, factors in merge.factors.items()})
    with pytest.raises(LoraclrError, match=r"merged lora_\w+ does not fit into fp16: choose bf16 or fp32"):
        save_merge(merge, tmp_path / "out" / "zoo.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_bundled_embeddings_pass_through_untouched(make_merge: MakeMerge) -> None:
    mine, other = torch.randn(2, 8), torch.randn(3, 8).bfloat16()
    # both bundle the first: equal content is one embedding
    merge = make_merge(extra=({EMBEDDING: mine}, {EMBEDDING: mine.clone(), "bundle_emb.x.clip_l": other}))
    tensors = lora_tensors(merge)
    assert torch.equal(tensors[EMBEDDING], mine)
    assert torch.equal(tensors["bundle_emb.x.clip_l"], other)
    assert tensors["bundle_emb.x.clip_l"].dtype == torch.bfloat16


def test_two_embeddings_of_one_name_are_refused(make_merge: MakeMerge) -> None:
    merge = make_merge(extra=({EMBEDDING: torch.zeros(2, 8)}, {EMBEDDING: torch.ones(2, 8)}))
    with pytest.raises(LoraclrError, match="mono bundles an embedding that fox bundles with other content"):
        lora_tensors(merge)


def test_what_a_file_needs_to_know_of_the_checkpoint_is_what_the_host_says(
    make_merge: MakeMerge, host: DiffusersHost
) -> None:
    """So that a hand-made merge stands for one of `merge_loras`."""
    merge = make_merge()
    assert Target.of(host, merge.factors) == merge.target


# What it says of itself


def test_the_metadata_are_those_by_which_the_webui_lists_a_file(make_merge: MakeMerge) -> None:
    metadata = lora_metadata(make_merge(rank=4), "zoo")
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "zoo",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "zoo",
        "modelspec.trigger_phrase": "sks animal",
        "modelspec.merged_from": "fox, mono",
        "loraclr.checkpoint": "emoji-sd1.safetensors",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert all(isinstance(value, str) and value for value in metadata.values())


def test_the_largest_rank_is_named_where_layers_differ(make_merge: MakeMerge, host: DiffusersHost) -> None:
    merge = make_merge(rank=4)
    factors = {**merge.factors, CONV: Factors(torch.zeros(64, 1), torch.zeros(1, 36))}
    assert lora_metadata(made_on(merge, host, factors), "zoo")["ss_network_dim"] == "4"


def test_the_kind_of_network_is_named_as_the_program_that_makes_it_does(
    make_merge: MakeMerge, host: DiffusersHost
) -> None:
    """kohya's trainer writes a LoRA; a LoCon (3x3 kernels) and whole deltas are LyCORIS', whose algorithm is an argument."""
    merge = make_merge(rank=4)
    conv = {CONV: Factors(torch.zeros(64, 2), torch.zeros(2, 36))}
    locon = lora_metadata(made_on(merge, host, {**merge.factors, **conv}), "zoo")
    assert locon["ss_network_module"] == "lycoris.kohya" and locon["ss_network_dim"] == "4"
    assert json.loads(locon["ss_network_args"]) == {"algo": "locon", "conv_dim": "2", "conv_alpha": "2.0"}
    plain = {key: factors for key, factors in merge.factors.items() if key != CONV}
    lora = lora_metadata(made_on(merge, host, plain), "zoo")
    assert lora["ss_network_module"] == "networks.lora" and "ss_network_args" not in lora
    pointwise = {"lora_unet_mid_block_attentions_0_proj_in": Factors(torch.zeros(128, 3), torch.zeros(3, 128))}
    assert host.layers()[next(iter(pointwise))].weight.dim() == 4, "control: a convolution, but of one pixel"
    assert lora_metadata(made_on(merge, host, pointwise), "zoo")["ss_network_module"] == "networks.lora"
    assert lora_metadata(made_on(merge, host, conv), "zoo")["ss_network_dim"] == "2"
    full = lora_metadata(whole(merge), "zoo")
    assert full["ss_network_module"] == "lycoris.kohya" and json.loads(full["ss_network_args"]) == {"algo": "full"}
    assert "ss_network_dim" not in full


def test_licences_of_the_inputs_are_all_named(make_merge: MakeMerge) -> None:
    merge = make_merge(metadata=({"modelspec.license": "MIT"}, {"modelspec.license": "CC-BY-4.0"}))
    assert lora_metadata(merge, "zoo")["modelspec.license"] == "CC-BY-4.0 / MIT"


def test_a_merged_file_and_its_card_name_whose_it_was_made_from(make_merge: MakeMerge) -> None:
    fox = {"modelspec.author": "somebody <b>", "modelspec.license": "CC-BY-NC-4.0"}
    merge = make_merge(metadata=(fox, {}))
    metadata = lora_metadata(merge, "zoo")
    assert metadata["modelspec.author"] == "somebody <b>"
    assert metadata["modelspec.license"] == "CC-BY-NC-4.0 / not named"
    assert json.loads(metadata["loraclr.credits"]) == {
        "fox": {"author": "somebody <b>", "licence": "CC-BY-NC-4.0"},
        "mono": {},
    }
    notes = str(user_card(merge)["notes"])
    assert "Made from:\nfox by somebody <b>, CC-BY-NC-4.0\nmono, licence not named\nSeed: 7" in notes
    assert "modelspec.author" not in lora_metadata(make_merge(), "zoo"), "control"


def test_tags_of_all_inputs_are_counted_together_also_in_folders_of_one_name(
    make_merge: MakeMerge,
) -> None:
    tags = ({"10_img": {"sks": 3, "dog": 1}}, {"10_img": {"dog": 2}, "5_clay": {"clay": 4}})
    merge = make_merge(metadata=tuple({"ss_tag_frequency": json.dumps(t)} for t in tags))
    merged = tag_frequency(lora_metadata(merge, "zoo"))
    assert merged == {"10_img": {"sks": 3, "dog": 3}, "5_clay": {"clay": 4}}


def test_the_recipe_gives_back_the_request_without_folders(make_merge: MakeMerge) -> None:
    merge = make_merge()
    request, hashes = read_recipe(lora_metadata(merge, "zoo"), "zoo.safetensors")
    assert [concept.lora for concept in request.concepts] == ["fox.safetensors", "mono.safetensors"]
    back = [
        replace(concept, lora=given.lora)
        for concept, given in zip(request.concepts, merge.request.concepts, strict=True)
    ]
    assert replace(request, concepts=tuple(back)) == merge.request
    assert hashes == {given.concept.label: given.file.hash for given in merge.inputs}


def test_a_file_without_recipe_is_named() -> None:
    with pytest.raises(
        LoraclrError, match=r"fox\.safetensors holds no LoRACLR recipe: name a file that LoRACLR merged"
    ):
        read_recipe({"ss_v2": "False"}, "fox.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"loraclr.inputs": "{"},
        {"loraclr.inputs": "[" * 200_000},
        {"loraclr.inputs": '["x"]'},
        {"loraclr.inputs": '{"fox": 1}'},
        {"loraclr.request": "{"},
        {"loraclr.request": "[" * 200_000},
        {"loraclr.request": '{"concepts": 9}'},
        {"loraclr.request": '{"concepts": [], "later": 1}'},
        {"loraclr.request": '{"seed": ' + "9" * 5000 + "}"},
    ],
    ids=lambda changes: "".join(f"{name}={value[:20]}" for name, value in changes.items()),
)
def test_a_recipe_that_cannot_be_read_is_named(make_merge: MakeMerge, changes: dict[str, str]) -> None:
    metadata = lora_metadata(make_merge(), "zoo")
    assert read_recipe(metadata, "zoo.safetensors"), "control"
    with pytest.raises(LoraclrError, match=r"The recipe in zoo\.safetensors cannot be read \("):
        read_recipe(metadata | changes, "zoo.safetensors")


def test_no_folder_of_this_machine_is_in_any_file(make_merge: MakeMerge, host: DiffusersHost, tmp_path: Path) -> None:
    merge = make_merge()
    windows = replace(merge.request.concepts[1], lora="C:\\Users\\somebody\\loras\\mono.safetensors")
    merge = replace(merge, request=replace(merge.request, concepts=(merge.request.concepts[0], windows)))
    assert str(tmp_path) in merge.request.concepts[0].lora
    assert os.sep in host.checkpoint
    folders = [str(tmp_path), "somebody", str(Path(host.checkpoint).parent)]
    for path in save_merge(merge, tmp_path / "zoo.safetensors", with_report=True):
        content = path.read_bytes()
        assert not [folder for folder in folders if folder.encode() in content], path.name


# The files


def test_the_same_merge_gives_the_same_bytes(make_merge: MakeMerge, tmp_path: Path) -> None:
    merge = make_merge(metadata=({"ss_tag_frequency": '{"a": {"x": 1}}'}, {}))
    shuffled = replace(merge, factors=dict(reversed(merge.factors.items())))
    files = [
        save_merge(merge, tmp_path / "1" / "zoo.safetensors", with_report=True),
        save_merge(shuffled, tmp_path / "2" / "zoo.safetensors", with_report=True),
    ]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_only_what_was_asked_for_is_written(make_merge: MakeMerge, tmp_path: Path) -> None:
    merge, picture = make_merge(), Image.new("RGB", (8, 8), "red")
    plain = save_merge(merge, tmp_path / "plain" / "zoo.safetensors")
    full = save_merge(merge, tmp_path / "full" / "zoo.v2.safetensors", preview=picture, with_report=True)
    assert [path.name for path in plain] == ["zoo.safetensors", "zoo.json"]
    assert {path.name for path in full} == {"zoo.v2.safetensors", "zoo.v2.json", "zoo.v2.png", "zoo.v2.report.json"}
    for files in (plain, full):
        assert sorted(files[0].parent.iterdir()) == sorted(files)
    assert Image.open(tmp_path / "full" / "zoo.v2.png").getpixel((0, 0)) == (255, 0, 0)
    assert json.loads((tmp_path / "full" / "zoo.v2.report.json").read_text("utf-8"))["method"] == "average"


def test_a_card_that_is_there_already_stops_all_of_it(make_merge: MakeMerge, tmp_path: Path) -> None:
    card = tmp_path / "out" / "zoo.json"
    card.parent.mkdir()
    card.write_text("mine")
    with pytest.raises(LoraclrError, match=r"zoo\.json exists already"):
        save_merge(make_merge(), card.with_suffix(".safetensors"))
    assert [path.name for path in card.parent.iterdir()] == ["zoo.json"]
    save_merge(make_merge(), card.with_suffix(".safetensors"), overwrite=True)
    assert card.read_text("utf-8") != "mine"


def test_a_preview_that_cannot_be_drawn_leaves_nothing(make_merge: MakeMerge, tmp_path: Path) -> None:
    unsaveable = Image.new("CMYK", (8, 8))  # PNG has no such mode
    with pytest.raises(OSError):
        unsaveable.save(tmp_path / "control.png")
    with pytest.raises(LoraclrError, match=r"zoo\.png cannot be written"):
        save_merge(make_merge(), tmp_path / "out" / "zoo.safetensors", preview=unsaveable)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_card_tells_the_webui_family_words_and_weight(make_merge: MakeMerge) -> None:
    card = user_card(make_merge())
    assert card["sd version"] == "SD1"
    assert card["activation text"] == "sks animal"
    assert card["preferred weight"] == 1.0
    assert card["description"] == "Merged by LoRACLR: fox: sks animal; mono: no trigger"
    assert "base drift" in str(card["notes"])
    # the fields that the WebUI's editor knows (modules/ui_edit_user_metadata.py and the Lora extension's)
    assert set(card) == {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}


def test_trigger_words_are_no_html_on_the_card(make_merge: MakeMerge) -> None:
    """A setting of the WebUI has it show descriptions as HTML; the words themselves stay as they are."""
    merge = make_merge()
    words = "<img src=x onerror=run()>"
    told = tuple(replace(concept, trigger=words) for concept in merge.report.concepts)
    card = user_card(replace(merge, report=replace(merge.report, concepts=told)))
    assert "‹img src=x onerror=run()›" in card["description"] and "<" not in card["description"]
    assert card["activation text"] == f"{words}, {words}"


def test_a_merged_file_names_its_own_trigger_words_with_and_without_its_card(
    make_merge: MakeMerge, tmp_path: Path
) -> None:
    (path, card) = save_merge(make_merge(), tmp_path / "zoo.safetensors")
    assert find_trigger(path, {}) == Trigger("sks animal", "card", is_guess=False)
    card.unlink()
    assert find_trigger(path, read_lora(path).metadata).words == "sks animal"


@pytest.mark.parametrize(("skip", "expected"), [(2, "2"), (0, None)])
def test_the_clip_skip_it_was_recorded_with_is_said_as_trainers_say_it(
    make_merge: Callable[..., Merge], skip: int, expected: str | None
) -> None:
    merge = make_merge()
    merge = replace(merge, target=replace(merge.target, clip_skip=skip))
    metadata = lora_metadata(merge, "friends")
    assert metadata.get("ss_clip_skip") == expected
    assert clip_skip(metadata) == skip, "merged again, it is recorded with the same"
