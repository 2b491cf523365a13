"""What a merge prints and leaves, with the merging itself left out."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from runs import MakeMerge, Run, assert_refused, listing

import lib_loraclr.doors.cli.measure as measure_command
import lib_loraclr.doors.cli.merge as merge_command
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.preview import Pictures
from lib_loraclr.request.merge_request import Concept, MergeRequest


@pytest.fixture
def merged(loaded: DiffusersHost, make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """`merge_loras` returns a merge made by hand."""
    merge = make_merge()
    monkeypatch.setattr(merge_command, "merge_loras", lambda *_, **__: merge)
    drawn = Pictures(sheet=Image.new("RGB", (16, 8)), card=Image.new("RGB", (8, 8)))
    monkeypatch.setattr(merge_command, "draw_pictures", lambda *_: drawn)
    return merge


def test_a_merge_prints_its_table_the_files_and_how_to_use_them(run: Run, folder: Path, merged: Merge) -> None:
    result = run("merge", "fox.safetensors", "cat.safetensors", "-o", "out/zoo", "--report")
    assert result.code == 0, result.err
    assert merged.report.table() in result.out
    assert "<lora:zoo:1>" in result.out
    assert "sks animal" in result.out
    written = sorted(path.name for path in (folder / "out").iterdir())
    assert written == ["zoo.json", "zoo.png", "zoo.report.json", "zoo.report.png", "zoo.safetensors"]
    sizes = [Image.open(folder / "out" / name).size for name in ("zoo.png", "zoo.report.png")]
    assert sizes == [(8, 8), (16, 8)], "the card has its own picture"
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
    monkeypatch.setattr(merge_command, "merge_loras", lambda *_, **__: warned)
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


def test_a_checkpoint_is_written_and_said_to_be_one(
    run: Run, loaded: DiffusersHost, folder: Path, make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_merge(precision="fp32")
    made = replace(made, request=replace(made.request, save_as="checkpoint"))
    monkeypatch.setattr(merge_command, "merge_loras", lambda *_, **__: made)
    result = run("merge", "fox.safetensors", "-o", "zoo", "--save-as", "checkpoint", "--no-preview")
    assert result.code == 0, result.err
    assert "models/Stable-diffusion and choose it as checkpoint; the words are: sks animal" in result.out
    assert {path.name for path in folder.glob("zoo.*")} == {"zoo.safetensors", "zoo.json", "zoo.yaml"}
    assert (folder / "zoo.safetensors").stat().st_size > loaded.checkpoint_path.stat().st_size - 100_000


@pytest.mark.usefixtures("loaded")
def test_ctrl_c_leaves_nothing_and_ends_with_130(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> Merge:
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
    assert "fox (subject, trigger sks animal), for example:\n    " in result.out
    assert "mute (style, trigger none), for example:\n    " in result.out
    assert "\n    one sks animal" in result.out and "\n    a cup" in result.out, "what the person asks for is among it"
    asked = [line for line in result.out.splitlines() if line.startswith("    ")]
    assert asked and all(line.endswith(", best") for line in asked)
    assert "negative prompt: blurry" in result.out
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_a_trigger_on_the_command_line_goes_before_the_files_own(run: Run, folder: Path) -> None:
    result = run("merge", "fox.safetensors", "--trigger", "fox=my fox", "--show-prompts")
    assert "fox (subject, trigger my fox), for example:" in result.out


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


def test_what_to_do_about_the_weakest_concept_is_printed(
    run: Run, folder: Path, merged: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [replace(c, recognised=0.1 if i else 1.0, taken_for={"": 0.9}) for i, c in enumerate(merged.report.concepts)]
    weak = replace(merged, report=replace(merged.report, concepts=tuple(seen)))
    monkeypatch.setattr(merge_command, "merge_loras", lambda *_, **__: weak)
    told = run("merge", "fox.safetensors", "cat.safetensors", "-o", "out/zoo", "--no-preview").out
    assert f"{seen[1].name} is lost: it is recognised in 10% of what was tried" in told and "Merge again with" in told
