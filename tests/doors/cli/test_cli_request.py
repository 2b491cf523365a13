"""From arguments, request files and recipes to a request."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from runs import Run, WriteLora, assert_refused, request_of

from lib_loraclr.output.merged import Merge
from lib_loraclr.output.saving import lora_metadata
from lib_loraclr.request.merge_request import LARGEST_SEED, Concept, MergeRequest, RecordingOptions
from lib_loraclr.request.prompts import PromptOptions


def test_every_argument_reaches_the_request() -> None:
    request = request_of(
        *("loras/fox.safetensors:.5:.25", "mono.safetensors", "--trigger", "fox=a=b", "--kind", "mono=style"),
        *("--importance", "mono=2", "--concept-prompt", "fox=one", "--concept-prompt", "fox=two"),
        *("--method", "ridge", "--ridge", "0.5", "--rank", "16", "--kept", ".9"),
        *("--save-as", "full", "--precision", "fp32"),
        *("--template", "{trigger}!", "--plain", "a cat", "--quality", "best", "--negative-prompt", "blurry"),
        *("--paths", "3", "--steps-per-path", "5", "--guidance", "7", "--height", "128", "--width", "256"),
        *("--memory", "64", "--seed", "9"),
    )
    assert request == MergeRequest(
        (
            Concept("loras/fox.safetensors", 0.5, 0.25, "a=b", prompts=("one", "two")),
            Concept("mono.safetensors", kind="style", importance=2.0),
        ),
        method="ridge",
        options={"ridge": "0.5"},
        rank="16",
        kept=0.9,
        save_as="full",
        precision="fp32",
        seed=9,
        memory_mb=64,
        prompts=PromptOptions(("{trigger}!",), ("a cat",), "best", "blurry"),
        recording=RecordingOptions(3, 5, guidance=7.0, height=128, width=256),
    )


def test_outfits_and_the_subjects_of_a_style_are_said_by_name() -> None:
    concepts = request_of(
        *(
            "fox.safetensors",
            "penguin.safetensors",
            "ink.safetensors",
            "--kind",
            "ink=style",
            "--trigger",
            "ink=ink style",
        ),
        *("--outfit", "fox=sks in red", "--outfit", "fox=sks in armor", "--applied-to", "ink=penguin"),
    ).concepts
    assert concepts[0].outfits == ("sks in red", "sks in armor") and concepts[2].applied_to == ("penguin",)


def test_an_option_by_name_is_the_same_as_its_flag() -> None:
    assert request_of("a.safetensors", "--option", "steps=7") == request_of("a.safetensors", "--steps", "7")


def test_flags_change_a_request_file_and_leave_the_rest(tmp_path: Path) -> None:
    saved = MergeRequest(
        (Concept("a.safetensors"), Concept("b.safetensors", trigger="b")),
        options={"effort": "fast", "margin": 0.25},
        seed=5,
        prompts=PromptOptions(quality="best", negative="blurry", pair="{first} beside {second}"),
    )
    file = tmp_path / "request.json"
    file.write_text(json.dumps(saved.to_dict()))
    assert request_of("--request", str(file)) == saved
    changed = request_of("--request", str(file), "--seed", "6", "--effort", "thorough", "--trigger", "a=fox")
    assert changed == replace(
        saved,
        concepts=(Concept("a.safetensors", trigger="fox"), saved.concepts[1]),
        options={"effort": "thorough", "margin": 0.25},
        seed=6,
    )
    prompts = request_of("--request", str(file), "--negative-prompt", "", "--quality", "").prompts
    assert prompts == replace(saved.prompts, negative="", quality="")


def test_a_preset_on_the_command_line_changes_the_templates_and_keeps_the_words(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"concepts": [{"lora": "a"}], "prompts": {"quality": "best", "negative": "blurry"}}')
    booru = PromptOptions.preset("booru")
    assert request_of("--request", str(file), "--prompts", "booru").prompts == replace(
        booru, quality="best", negative="blurry"
    )


def test_a_request_file_saved_by_windows_notepad_is_read(tmp_path: Path) -> None:
    """Notepad and PowerShell put a byte order mark before UTF-8."""
    file = tmp_path / "request.json"
    file.write_text('{"concepts": [{"lora": "a.safetensors"}]}', "utf-8-sig")
    assert request_of("--request", str(file)).concepts == (Concept("a.safetensors"),)


def test_names_in_a_request_file_are_meant_from_its_folder(tmp_path: Path, write_lora: WriteLora) -> None:
    beside = write_lora(tmp_path / "loras" / "fox.safetensors")
    file = tmp_path / "request.json"
    file.write_text('{"concepts": [{"lora": "loras/fox.safetensors"}, {"lora": "elsewhere.safetensors"}]}')
    assert [concept.lora for concept in request_of("--request", str(file)).concepts] == [
        str(beside),
        "elsewhere.safetensors",
    ]


def test_a_merged_file_gives_its_own_request_back(recipe: tuple[Merge, Path], tmp_path: Path) -> None:
    merge, path = recipe
    assert request_of("--recipe-from", str(path), "--lora-dir", str(tmp_path / "inputs")) == merge.request


def test_inputs_of_a_recipe_are_told_by_their_hash(
    recipe: tuple[Merge, Path], tmp_path: Path, run: Run, write_lora: WriteLora
) -> None:
    merge, path = recipe
    repeat = ["merge", "--recipe-from", str(path), "-o", "again"]
    assert_refused(run(*repeat), "fox.safetensors", "it is not there", "--lora-dir")
    decoys = tmp_path / "decoys"
    for name in ("fox", "mono"):
        write_lora(decoys / f"{name}.safetensors")
    assert_refused(run(*repeat, "--lora-dir", str(decoys)), "another file of that name is there", "--lora-dir")
    folders = ("--lora-dir", str(decoys), "--lora-dir", str(tmp_path / "inputs"))
    assert request_of("--recipe-from", str(path), *folders) == merge.request


def test_a_recipe_leads_to_no_file_outside_the_named_folders(
    recipe: tuple[Merge, Path], tmp_path: Path, run: Run, write_lora: WriteLora
) -> None:
    """A file comes from anywhere; a network path inside it would make Windows log on to that machine."""
    merge, _ = recipe
    metadata = lora_metadata(merge, "zoo")
    request = json.loads(metadata["loraclr.request"])
    for name in (str(tmp_path / "inputs" / "fox.safetensors"), "../inputs/fox.safetensors"):
        request["concepts"][0]["lora"] = name
        forged = write_lora(
            tmp_path / "out" / "forged.safetensors", metadata={**metadata, "loraclr.request": json.dumps(request)}
        )
        assert_refused(run("merge", "--recipe-from", str(forged), "-o", "again"), "fox.safetensors", "it is not there")


def test_a_seed_of_minus_one_is_another_each_time(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"concepts": [{"lora": "a.safetensors"}], "seed": -1}), "utf-8")
    drawn = [request_of("a.safetensors", "--seed", "-1").seed, request_of("--request", str(file)).seed]
    drawn += [request_of("a.safetensors", "--seed", "-1").seed]
    assert len({*drawn}) == 3 and all(0 <= seed <= LARGEST_SEED for seed in drawn)
    assert request_of("a.safetensors").seed == 0, "control: unless it is asked for, it is the same each time"
