"""The command line through `main`: what it prints, and one clear sentence and exit code 2 for every mistake."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import lib_loraclr.cli.measure as measure_command
import lib_loraclr.cli.merge as merge_command
from lib_loraclr import __version__
from lib_loraclr.cli import COMMANDS, build_parser, main
from lib_loraclr.cli.arguments import build_request
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.lora_files import read_lora
from lib_loraclr.merge import Merge
from lib_loraclr.methods import METHODS
from lib_loraclr.options import schema
from lib_loraclr.output import lora_metadata, save_merge
from lib_loraclr.prompts import PromptOptions
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

WriteLora = Callable[..., Path]
MakeMerge = Callable[..., Merge]

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run_(*arguments: str) -> Result:
        try:
            code = main(arguments)
        except SystemExit as stop:  # argparse's own way out
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run_


@pytest.fixture
def loaded(host: DiffusersHost, monkeypatch: pytest.MonkeyPatch) -> DiffusersHost:
    """The commands get the model that is loaded already."""
    for command in (merge_command, measure_command):
        monkeypatch.setattr(command, "load_host", lambda arguments: host)
    return host


@pytest.fixture
def folder(tmp_path: Path, write_lora: WriteLora) -> Path:
    """Good and bad files side by side."""
    for name, phrase in (("fox", "sks animal"), ("cat", "ohwx cat")):
        write_lora(tmp_path / f"{name}.safetensors", metadata={"modelspec.trigger_phrase": phrase})
    write_lora(tmp_path / "mute.safetensors")
    fox = (tmp_path / "fox.safetensors").read_bytes()
    (tmp_path / "copy.safetensors").write_bytes(fox)
    (tmp_path / "cut.safetensors").write_bytes(fox[: len(fox) // 2])
    (tmp_path / "liar.safetensors").write_bytes(fox.replace(b'"shape":[64,', b'"shape":[65,', 1))
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({}))
    key = "lora_unet_conv_in"
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        write_lora(tmp_path / f"{name}.safetensors", extra={f"{key}.alpha": torch.tensor(value)}, layers={})
    write_lora(tmp_path / "wide.safetensors", {key: (320, 4, 3, 3)})
    write_lora(tmp_path / "sdxl.safetensors", {"lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768)})
    write_lora(tmp_path / "alien.safetensors", {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)})
    write_lora(tmp_path / "loha.safetensors", {}, extra={f"{key}.hada_w1_a": torch.ones(2, 2)})
    write_lora(tmp_path / "twin.safetensors", metadata={"modelspec.trigger_phrase": "sks animal"})
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    (tmp_path / "request.json").write_text('{"metod": "ridge"}')
    (tmp_path / "broken.json").write_text('{"concepts": [}')
    (tmp_path / "number.json").write_text('{"concepts": [{"lora": 5}]}')
    (tmp_path / "utf16.json").write_bytes('{"concepts": []}'.encode("utf-16"))
    (tmp_path / "model.safetensors").write_bytes(fox)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "unet").mkdir(parents=True)
    return tmp_path


def listing(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(result: Result, *fragments: str) -> None:
    """Exit code 2, one sentence after at most a word of progress, and these words in it."""
    assert result.code == 2, result
    assert result.out == ""
    *progress, line = result.err.splitlines()
    assert all(text.startswith("loading ") for text in progress), result.err
    assert line.startswith("loraclr: ")
    assert line.endswith(".")
    for fragment in fragments:
        assert fragment in line


# Help and lists


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_and_each_of_its_arguments(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: loraclr {name}")
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for action in commands.choices[name]._actions:
        assert action.help, action.dest
        assert action.dest == "help" or (action.option_strings or [action.metavar])[0] in result.out


def test_the_help_lists_every_command_with_what_it_is_for(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for name, command in zip(NAMES, COMMANDS, strict=True):
        assert name in result.out
        assert command.HELP in result.out


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.strip() == __version__


def test_methods_lists_every_method_with_its_source_and_every_option_with_its_default(run: Run) -> None:
    result = run("methods")
    assert result.code == 0
    for method in METHODS.values():
        assert f"{method.name}: {method.label}" in result.out
        assert method.source in result.out
        for item in schema(method.options):
            assert f"--{item.name.replace('_', '-')} [" in result.out
            assert f"default {item.default}] {item.help}" in result.out


def test_every_option_of_every_method_is_a_flag_of_merge(run: Run) -> None:
    printed = run("merge", "--help").out
    for method in METHODS.values():
        for item in schema(method.options):
            assert f"--{item.name.replace('_', '-')} VALUE" in printed


def test_measure_offers_nothing_that_it_would_ignore(run: Run) -> None:
    """Retention is measured on its own paths, whatever was recorded to merge."""
    printed = run("measure", "--help").out
    for flag in ("--show-prompts", "--paths", "--steps-per-path", "--importance"):
        assert flag not in printed


# Mistakes that need no model

NO_MODEL = {
    "no LoRA": (["--output", "zoo"], ["nothing to merge", "name at least one LoRA"]),
    "no LoRA but words for one": (["--trigger", "fox=sks"], ["nothing to merge"]),
    "a weight that is no number": (["fox.safetensors:strong"], ["fox.safetensors:strong", "'strong'", "not a number"]),
    "an unknown weight": (["fox.safetensors:tee=1"], ["weight 'tee' in fox.safetensors:tee=1", "did you mean 'te'"]),
    "dyn": (["fox.safetensors:1:dyn=8"], ["dyn=", "resize the file first"]),
    "lbw": (["fox.safetensors:1:lbw=MIDD"], ["lbw=", "leave it out"]),
    "the same LoRA twice": (["fox.safetensors", "fox.safetensors:.5"], ["fox.safetensors is named 2 times", "once"]),
    "an unknown method": (["fox.safetensors", "--method", "rigde"], ["method 'rigde'", "did you mean 'ridge'"]),
    "an unknown option": (
        ["fox.safetensors", "--method", "ridge", "--option", "rigde=1"],
        ["option 'rigde' of method ridge", "did you mean 'ridge'"],
    ),
    "another method's option": (
        ["fox.safetensors", "--method", "average", "--effort", "fast"],
        ["'effort'", "method average has none"],
    ),
    "an option out of range": (["fox.safetensors", "--margin", "9"], ["margin", "'9'", "from 0.0 to 2.0"]),
    "an option of the wrong type": (
        ["fox.safetensors", "--batch-size", "1.5"],
        ["batch_size", "'1.5'", "whole number"],
    ),
    "an unknown choice": (["fox.safetensors", "--effort", "quick"], ["effort", "'quick'", "fast, balanced, thorough"]),
    "an option without value": (
        ["fox.safetensors", "--option", "margin"],
        ["--option 'margin' has no '='", "NAME=VAL"],
    ),
    "a trigger without name": (["fox.safetensors", "--trigger", "sks"], ["--trigger 'sks' has no '='", "NAME=VALUE"]),
    "a trigger of another": (["fox.safetensors", "--trigger", "fxo=sks"], ["LoRA called 'fxo'", "did you mean 'fox'"]),
    "an unknown kind": (
        ["fox.safetensors", "--kind", "fox=stile"],
        ["kind of concept 'stile'", "did you mean 'style'"],
    ),
    "an importance of 0": (["fox.safetensors", "--importance", "fox=0"], ["importance of fox is 0.0", "above 0"]),
    "an importance in words": (
        ["fox.safetensors", "--importance", "fox=big"],
        ["importance of fox is 'big'", "number"],
    ),
    "a rank of 0": (["fox.safetensors", "--rank", "0"], ["The rank is '0'", "auto, full"]),
    "a share above 1": (["fox.safetensors", "--kept", "1.5"], ["share to keep is 1.5", "up to 1"]),
    "a share in words": (["fox.safetensors", "--kept", "most"], ["--kept is 'most'", "not a number"]),
    "an unknown precision": (["fox.safetensors", "--precision", "fp8"], ["precision 'fp8'", "bf16, fp16, fp32"]),
    "no memory": (["fox.safetensors", "--memory", "0"], ["memory budget is 0 MB", "at least 1"]),
    "a negative seed": (["fox.safetensors", "--seed", "-1"], ["seed is -1", "from 0"]),
    "a size between sizes": (["fox.safetensors", "--height", "100"], ["recording.height is 100", "multiple of 64"]),
    "a template without trigger": (["fox.safetensors", "--template", "a fox"], ["'a fox'", "{trigger}"]),
    "a request that is not there": (["--request", "gone.json"], ["no request file gone.json", "check the name"]),
    "a request that is not JSON": (["--request", "broken.json"], ["broken.json", "not JSON", "line 1 column 15"]),
    "a request in another encoding": (["--request", "utf16.json"], ["utf16.json", "UTF-8"]),
    "a request with an unknown field": (["--request", "request.json"], ["'metod'", "did you mean 'method'"]),
    "a request with a number for a file": (["--request", "number.json"], ["lora in concept 1 is 5", "give text"]),
    "a recipe that is not there": (["--recipe-from", "gone.safetensors"], ["no file gone.safetensors"]),
    "a recipe from a file without": (["--recipe-from", "fox.safetensors"], ["fox.safetensors holds no LoRACLR recipe"]),
    "no output": (["fox.safetensors"], ["No output is named", "--output NAME"]),
    "an output that exists": (["fox.safetensors", "-o", "taken"], ["taken.safetensors exists already", "--overwrite"]),
    "an output beside a card": (["fox.safetensors", "-o", "request"], ["request.json exists already", "--overwrite"]),
    "an output outside its folder": (
        ["fox.safetensors", "-o", "../zoo", "--output-dir", "empty"],
        ["'../zoo' leaves empty", "give a name"],
    ),
    "an output with a path of its own": (
        ["fox.safetensors", "-o", "/zoo", "--output-dir", "empty"],
        ["'/zoo' is a path of its own", "inside empty"],
    ),
    "an output that is too long": (["fox.safetensors", "-o", "z" * 250], ["too long"]),
    "an output that is a device": (["fox.safetensors", "-o", "nul"], ["'nul'", "reserve"]),
    "no checkpoint": (["fox.safetensors", "-o", "zoo"], ["No checkpoint is named", "--checkpoint FILE"]),
    "a checkpoint that is not there": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "gone.safetensors"],
        ["no checkpoint gone.safetensors", "check the name"],
    ),
    "a pickled checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "old.pt"],
        ["old.pt is a pickle", "convert"],
    ),
    "a LoRA as checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors"],
        ["model.safetensors is not a Stable Diffusion 1.x checkpoint"],
    ),
    "a folder as checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "empty"],
        ["empty is not a diffusers folder", "unet/"],
    ),
    "a folder with half a checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "half"],
        ["half"],
    ),
    "a device that is not there": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors", "--device", "gpu"],
        ["no device 'gpu'", "give auto, cpu, cuda, cuda:0 or mps."],
    ),
    "a device that does not work here": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors", "--device", "cuda:99"],
        ["device 'cuda:99' cannot be used here", "--device cpu"],
    ),
    "a LoRA that is not there, before the checkpoint is looked at": (
        ["gone.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors"],
        ["no file gone.safetensors", "check the name"],
    ),
}


@pytest.mark.parametrize(("arguments", "fragments"), NO_MODEL.values(), ids=NO_MODEL.keys())
def test_a_mistake_gets_one_sentence_with_the_name_the_value_and_the_remedy(
    run: Run, folder: Path, arguments: list[str], fragments: list[str]
) -> None:
    before = listing(folder)
    assert_refused(run("merge", *arguments), *fragments)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["COMMAND"]),
        (["mrege"], ["mrege", "merge"]),
        (["merge", "--paths", "many"], ["--paths", "'many'"]),
        (["merge", "--memory", "1GB"], ["--memory", "'1GB'"]),
        (["merge", "--prompts", "boru"], ["--prompts", "'boru'", "booru"]),
        (["merge", "--no-such-flag"], ["--no-such-flag"]),
        (["merge", "--request", "a.json", "--recipe-from", "b.safetensors"], ["--recipe-from", "not allowed"]),
        (["inspect"], ["FILE"]),
    ],
    ids=" ".join,
)
def test_argparses_own_refusals_end_with_2_and_name_the_argument(
    run: Run, arguments: list[str], fragments: list[str]
) -> None:
    result = run(*arguments)
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert all(fragment in last for fragment in fragments), last


def test_a_checkpoints_damaged_config_is_named(run: Run, folder: Path, demo: Path) -> None:
    checkpoint = folder / "sd1.safetensors"
    shutil.copyfile(demo / "emoji-sd1.safetensors", checkpoint)
    for text in ("model: [", "other: 1", "model:\n  params: {}\n"):
        (folder / "sd1.yaml").write_text(text)
        assert_refused(run("merge", "fox.safetensors", "-o", "zoo", "--checkpoint", str(checkpoint)), "sd1.yaml")


# Mistakes that show when a LoRA is read and held against the model

BAD_LORAS = {
    "not there": (["gone.safetensors"], ["no file gone.safetensors", "check the name"]),
    "no extension": (["fox"], ["fox is not a .safetensors file"]),
    "a pickle": (["old.pt"], ["old.pt is a pickle", "convert it to .safetensors first"]),
    "not safetensors": (["page.safetensors"], ["page.safetensors cannot be read as safetensors", "download it again"]),
    "truncated": (["cut.safetensors"], ["cut.safetensors cannot be read as safetensors", "download it again"]),
    "lying about sizes": (["liar.safetensors"], ["liar.safetensors cannot be read as safetensors", "damaged"]),
    "NaN": (["nan.safetensors"], ["nan.safetensors holds NaN or infinity in lora_unet_conv_in.alpha", "earlier epoch"]),
    "infinity": (["inf.safetensors"], ["inf.safetensors holds NaN or infinity", "earlier epoch"]),
    "another shape": (["wide.safetensors"], ["wide.safetensors does not fit", "[320, 36]", "[64, 36]", "leave it out"]),
    "for SDXL": (["sdxl.safetensors"], ["sdxl.safetensors does not fit", "(SD1)", "LoRA for SDXL", "leave it out"]),
    "no layer in common": (["alien.safetensors"], ["alien.safetensors does not fit", "1 of its 1", "another model"]),
    "another kind of network": (["loha.safetensors"], ["loha.safetensors is a LoHa network", "leave this file out"]),
    "one LoRA by two names": (["fox.safetensors", "copy.safetensors"], ["copy.safetensors is the same LoRA as fox"]),
    "all weights 0": (["fox.safetensors:0", "cat.safetensors:0"], ["All weights are 0", "another weight"]),
    "the same trigger": (
        ["fox.safetensors", "twin.safetensors"],
        ["fox and twin have the same prompts", "other trigger"],
    ),
    "the same own prompts": (
        ["fox.safetensors", "cat.safetensors", "--concept-prompt", "fox=a pet", "--concept-prompt", "cat=a pet"],
        ["fox and cat have the same prompts"],
    ),
}


@pytest.mark.parametrize(("arguments", "fragments"), BAD_LORAS.values(), ids=BAD_LORAS.keys())
@pytest.mark.usefixtures("loaded")
def test_a_lora_that_cannot_be_merged_gets_one_sentence(
    run: Run, folder: Path, arguments: list[str], fragments: list[str]
) -> None:
    before = listing(folder)
    assert_refused(run("merge", *arguments, "-o", "zoo"), *fragments)
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_measure_refuses_a_bad_merged_file_by_name(run: Run, folder: Path) -> None:
    for name in ("cut.safetensors", "old.pt", "sdxl.safetensors", "gone.safetensors"):
        assert_refused(run("measure", "fox.safetensors", "--merged", name), name)


def test_inspect_refuses_what_it_cannot_read(run: Run, folder: Path) -> None:
    for name in ("cut.safetensors", "old.pt", "nan.safetensors", "gone.safetensors", "page.safetensors"):
        assert_refused(run("inspect", name), name)


# A merge, with the merging itself left out


@pytest.fixture
def merged(loaded: DiffusersHost, make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """`merge_loras` returns a merge made by hand."""
    merge = make_merge()
    monkeypatch.setattr(merge_command, "merge_loras", lambda *_: merge)
    monkeypatch.setattr(merge_command, "preview_grid", lambda *_: Image.new("RGB", (8, 8)))
    return merge


def test_a_merge_prints_its_table_the_files_and_how_to_use_them(run: Run, folder: Path, merged: Merge) -> None:
    result = run("merge", "fox.safetensors", "cat.safetensors", "-o", "out/zoo", "--report")
    assert result.code == 0, result.err
    assert merged.report.table() in result.out
    assert "<lora:zoo:1>" in result.out
    assert "sks animal" in result.out
    written = sorted(path.name for path in (folder / "out").iterdir())
    assert written == ["zoo.json", "zoo.png", "zoo.report.json", "zoo.safetensors"]
    assert all(f"wrote {Path('out', name)}" in result.out for name in written)


@pytest.mark.usefixtures("merged")
def test_no_preview_and_no_report_leave_the_lora_and_its_card(run: Run, folder: Path) -> None:
    assert run("merge", "fox.safetensors", "-o", "zoo.safetensors", "--output-dir", "out", "--no-preview").code == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["zoo.json", "zoo.safetensors"]


@pytest.mark.usefixtures("merged")
def test_an_output_that_exists_is_replaced_when_asked(run: Run, folder: Path) -> None:
    assert run("merge", "fox.safetensors", "-o", "taken", "--overwrite", "--no-preview").code == 0
    assert len(read_lora(folder / "taken.safetensors").layers) > 0


@pytest.mark.usefixtures("folder")
def test_warnings_of_the_merge_are_printed(run: Run, merged: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    warned = replace(merged, report=replace(merged.report, warnings=("mute names no trigger words.",)))
    monkeypatch.setattr(merge_command, "merge_loras", lambda *_: warned)
    assert "warning: mute names no trigger words." in run("merge", "fox.safetensors", "-o", "zoo").out


@pytest.mark.usefixtures("merged")
def test_a_full_disk_gets_one_sentence_and_leaves_nothing(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = listing(folder)
    result = run("merge", "fox.safetensors", "-o", "zoo")
    assert_refused(result, "zoo.safetensors cannot be written", "No space left on device", "free some space")
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_ctrl_c_leaves_nothing_and_ends_with_130(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Merge:
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_command, "merge_loras", interrupt)
    before = listing(folder)
    result = run("merge", "fox.safetensors", "-o", "zoo")
    assert (result.code, result.err) == (130, "loraclr: interrupted; nothing was written.\n")
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_the_prompts_can_be_seen_without_merging(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(merge_command, "merge_loras")
    before = listing(folder)
    result = run(
        *("merge", "fox.safetensors", "mute.safetensors", "--kind", "mute=style", "--template", "one {trigger}"),
        *("--plain", "a cup", "--quality", "best", "--negative-prompt", "blurry", "--show-prompts"),
    )
    assert result.code == 0, result.err
    assert "fox (subject, trigger sks animal):\n    one sks animal, best\n" in result.out
    assert "mute (style, trigger none):\n    a cup, best\n" in result.out
    assert "negative prompt: blurry" in result.out
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_a_trigger_on_the_command_line_goes_before_the_files_own(run: Run, folder: Path) -> None:
    result = run("merge", "fox.safetensors", "--trigger", "fox=my fox", "--show-prompts")
    assert "fox (subject, trigger my fox):" in result.out


def test_measure_prints_the_report(
    run: Run, loaded: DiffusersHost, folder: Path, make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    report = make_merge().report

    def measured(request: MergeRequest, host: DiffusersHost, merged: str | None, progress: object) -> object:
        asked.append((request.concepts, host, merged))
        return report

    monkeypatch.setattr(measure_command, "measure_loras", measured)
    result = run("measure", "fox.safetensors:.5", "--merged", "cat.safetensors:0.8")
    assert (result.code, result.out) == (0, report.table() + "\n")
    assert asked == [((Concept("fox.safetensors", 0.5, 0.5),), loaded, "cat.safetensors:0.8")]


# From arguments to a request


def request_of(*arguments: str) -> MergeRequest:
    return build_request(build_parser().parse_args(["merge", *arguments]))


def test_every_argument_reaches_the_request() -> None:
    request = request_of(
        *("loras/fox.safetensors:.5:.25", "mono.safetensors", "--trigger", "fox=a=b", "--kind", "mono=style"),
        *("--importance", "mono=2", "--concept-prompt", "fox=one", "--concept-prompt", "fox=two"),
        *("--method", "ridge", "--ridge", "0.5", "--rank", "16", "--kept", ".9", "--precision", "fp32"),
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
        precision="fp32",
        seed=9,
        memory_mb=64,
        prompts=PromptOptions(("{trigger}!",), ("a cat",), "best", "blurry"),
        recording=RecordingOptions(3, 5, 7.0, 128, 256),
    )


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


@pytest.fixture
def recipe(tmp_path: Path, make_merge: MakeMerge, host: DiffusersHost) -> tuple[Merge, Path]:
    """A hand-made merge whose inputs are in `inputs`, and its file in another folder."""
    merge = make_merge()
    (path, _) = save_merge(merge, host, tmp_path / "out" / "zoo.safetensors")
    return merge, path


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
    recipe: tuple[Merge, Path], tmp_path: Path, run: Run, host: DiffusersHost, write_lora: WriteLora
) -> None:
    """A file comes from anywhere; a network path inside it would make Windows log on to that machine."""
    merge, _ = recipe
    metadata = lora_metadata(merge, host, "zoo")
    request = json.loads(metadata["loraclr.request"])
    for name in (str(tmp_path / "inputs" / "fox.safetensors"), "../inputs/fox.safetensors"):
        request["concepts"][0]["lora"] = name
        forged = write_lora(
            tmp_path / "out" / "forged.safetensors", metadata={**metadata, "loraclr.request": json.dumps(request)}
        )
        assert_refused(run("merge", "--recipe-from", str(forged), "-o", "again"), "fox.safetensors", "it is not there")


# inspect


def test_inspect_shows_what_a_trained_lora_is(run: Run, demo: Path) -> None:
    path = demo / "loras" / "guitar.safetensors"
    result = run("inspect", str(path))
    assert (result.code, result.err) == (0, "")
    name, *lines = result.out.splitlines()
    assert name == str(path)
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert facts == {
        "family": "SD1",
        "kind": "LoRA",
        "rank": "4",
        "alpha": "2.0",
        "layers": "216 (24 text encoder, 192 UNet)",
        "size": "0.6 MB",
        "trigger": "gkh instrument",
        "base": "emoji-sd1.safetensors",
        "licence": "MIT",
        "hash": read_lora(path).hash,
    }


def test_inspect_says_what_is_not_known_instead_of_guessing(run: Run, folder: Path) -> None:
    out = run("inspect", "mute.safetensors").out
    for line in ("family    unknown", "trigger   none named", "base      not named", "licence   not named"):
        assert line.split() in [printed.split() for printed in out.splitlines()]


def test_inspect_tells_ranks_kinds_embeddings_and_unknown_keys_apart(
    run: Run, folder: Path, write_lora: WriteLora
) -> None:
    extra = {
        "lora_unet_small.lora_up.weight": torch.ones(4, 1),
        "lora_unet_small.lora_down.weight": torch.ones(1, 4),
        "lora_unet_hada.hada_w1_a": torch.ones(2, 2),
        "bundle_emb.sks.clip_l": torch.ones(1, 2),
        "x.y": torch.ones(1),
    }
    write_lora(folder / "mixed.safetensors", {"lora_unet_conv_in": (64, 4, 3, 3)}, extra=extra)
    out = run("inspect", "mixed.safetensors").out
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert "LoHa (1 " in facts["kind"]
    assert "LoRA (2 " in facts["kind"]
    assert "1 (1 " in facts["rank"]
    assert "2 (1 " in facts["rank"]
    assert facts["embeddings"] == "sks"
    assert "x.y" in out


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1": (8, 4)}, "SDXL"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 768)}, "SD1"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 1024)}, "SD2"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 2048)}, "SDXL"),
    ],
)
def test_inspect_tells_the_family_by_the_layers(
    run: Run, folder: Path, write_lora: WriteLora, layers: dict[str, tuple[int, ...]], family: str
) -> None:
    write_lora(folder / "x.safetensors", layers)
    assert f"family    {family}".split() in [line.split() for line in run("inspect", "x.safetensors").out.splitlines()]


def test_inspect_shows_several_files_one_after_the_other(run: Run, folder: Path) -> None:
    out = run("inspect", "fox.safetensors", "cat.safetensors").out
    assert out.index("fox.safetensors") < out.index("sks animal") < out.index("\n\ncat.safetensors")


def test_inspect_shows_what_a_merged_file_was_made_from(run: Run, recipe: tuple[Merge, Path]) -> None:
    assert "fox, mono" in run("inspect", str(recipe[1])).out
