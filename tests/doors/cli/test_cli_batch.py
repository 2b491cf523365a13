"""Many merges of a file, and what merges would take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import MakeMerge, Result, Run, assert_refused, listing

import lib_loraclr.doors.cli.merge as merge_command
from lib_loraclr.doors.cli.working import left_out
from lib_loraclr.files.lora_files import LoraFile
from lib_loraclr.files.work_folder import WorkFolder
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.start import Start
from lib_loraclr.output.merged import Begun, Merge
from lib_loraclr.output.saving import save_merge
from lib_loraclr.recording.inputs import InputLora
from lib_loraclr.request import Concept
from lib_loraclr.request.merge_request import MergeRequest
from lib_loraclr.solving.methods.contrastive import STEPS

Written = Callable[..., Path]


@pytest.fixture
def asked(loaded: DiffusersHost, make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch) -> list[MergeRequest]:
    """`merge_loras` returns a merge made by hand, or fails at a LoRA called mute; what it was asked."""
    made, seen = make_merge(), []

    def merge(request: MergeRequest, *_: object, **__: object) -> Merge:
        seen.append(request)
        if request.concepts[0].label == "mute":
            raise RuntimeError("the card fell off the bus")
        return made

    monkeypatch.setattr(merge_command, "merge_loras", merge)
    return seen


@pytest.fixture
def jobs(folder: Path) -> Written:
    """Writes a file of merges, one a line; text as it is."""

    def write(*lines: Mapping[str, object] | str) -> str:
        (folder / "jobs.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
        return "jobs.jsonl"

    return write


def told(result: Result) -> list[dict]:
    return [json.loads(line) for line in result.out.splitlines()]


def test_each_merge_is_a_line_and_one_that_fails_ends_none_of_the_others(
    run: Run, jobs: Written, asked: list[MergeRequest], folder: Path
) -> None:
    path = jobs(
        {"output": "one", "loras": ["fox.safetensors:0.8", "cat.safetensors"]},
        {"output": "two", "loras": ["nowhere.safetensors"]},
        "not JSON",
        "",
        {"output": "three", "loras": ["mute.safetensors"]},
        {"output": "four", "concepts": [{"lora": "cat.safetensors"}], "seed": 3},
    )
    result = run("merge", "--batch", path, "--output-dir", "out", "--no-preview", "--rank", "4")
    assert result.code == 1
    lines = told(result)
    assert [(line["job"], line["output"], line["ok"]) for line in lines] == [
        (1, "one", True),
        (2, "two", False),
        (3, "", False),
        (4, "three", False),
        (5, "four", True),
    ]
    assert [request.rank for request in asked] == ["4"] * 3, "flags change each of them"
    assert asked[0].concepts[0].unet_weight == 0.8 and asked[2].seed == 3
    assert "There is no file" in lines[1]["error"] and "not JSON" in lines[2]["error"]
    assert lines[3]["error"] == "RuntimeError: the card fell off the bus"
    assert "Traceback" in result.err and "fell off the bus" in result.err, "the log has all of it"
    assert sorted(path.name for path in (folder / "out").glob("*.safetensors")) == [
        "four.safetensors",
        "one.safetensors",
    ]
    assert [Path(file).name for file in lines[0]["files"]] == ["one.safetensors", "one.json"]
    assert lines[0]["concepts"][0] == {"name": "fox", "merged": 0.5, "recognised": None, "verdict": ""}


@pytest.mark.usefixtures("asked")
def test_all_went_well_is_0_and_the_checkpoint_is_loaded_once(
    run: Run, jobs: Written, loaded: DiffusersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []
    monkeypatch.setattr(merge_command, "load_host", lambda arguments: times.append(1) or loaded)
    path = jobs({"output": "a", "loras": ["fox.safetensors"]}, {"output": "b", "loras": ["cat.safetensors"]})
    assert run("merge", "--batch", path, "--no-preview").code == 0
    assert len(times) == 1
    assert run("merge", "--batch", jobs({"output": "b", "loras": ["cat.safetensors"]}), "--no-preview").code == 1
    assert len(times) == 1, "not at all where nothing can be merged: b exists"


def test_two_lines_of_one_output_are_seen_before_the_first_is_merged(
    run: Run, jobs: Written, asked: list[MergeRequest]
) -> None:
    path = jobs({"output": "a", "loras": ["fox.safetensors"]}, {"output": "a", "loras": ["cat.safetensors"]})
    lines = told(run("merge", "--batch", path, "--no-preview"))
    assert len(asked) == 1 and lines[0]["ok"]
    assert "a is the output of a line before it too" in lines[1]["error"]


@pytest.mark.usefixtures("asked")
def test_what_a_line_lacks_is_said(run: Run, jobs: Written) -> None:
    path = jobs(
        {"loras": ["fox.safetensors"]},
        {"output": "a", "loras": "fox.safetensors"},
        {"output": "a", "loras": ["fox.safetensors"], "concepts": []},
        {"output": "a"},
        {"output": "a", "loras": ["fox.safetensors"], "metod": "ridge"},
        "[1]",
    )
    errors = [line["error"] for line in told(run("merge", "--batch", path))]
    for error, said in zip(
        errors,
        (
            "output is None: give a name",
            "loras is 'fox.safetensors': give a list of texts",
            "and no concepts beside it",
            "There is nothing to merge",
            "did you mean 'method'",
            "The line is [1]: give an object",
        ),
        strict=True,
    ):
        assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "none.jsonl"), "There is no file of merges none.jsonl"),
        (("--batch", "empty.jsonl"), "empty.jsonl names no merge: give one JSON object a line"),
        (("--batch", "utf16.json"), "is not UTF-8 text"),
        (("--batch", "jobs.jsonl", "fox.safetensors"), "LoRAs goes with one merge, and --batch jobs.jsonl has many"),
        (("--batch", "jobs.jsonl", "-o", "zoo"), "--output goes with one merge"),
        (("--batch", "jobs.jsonl", "--show-prompts"), "--show-prompts shows those of one merge"),
    ],
)
@pytest.mark.usefixtures("asked")
def test_what_does_not_go_with_many_is_refused(
    run: Run, jobs: Written, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    jobs({"output": "a", "loras": ["fox.safetensors"]})
    (folder / "empty.jsonl").write_text("\n \n")
    before = listing(folder)
    assert_refused(run("merge", *arguments), said)
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_command, "merge_loras", None)
    before = listing(folder)
    result = run("merge", "fox.safetensors", "cat.safetensors", "--dry-run", "--work-folder", "work")
    assert result.code == 0, result.err
    for said in ("recording the LoRAs", "refining", str(STEPS["balanced"] * 3), "in all about", "MB of RAM", "at most"):
        assert said in result.out
    result = run("merge", "fox.safetensors", "copy.safetensors", "--dry-run")
    assert result.code == 2
    assert "problem: copy.safetensors is the same LoRA as fox.safetensors" in result.out
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_a_dry_run_of_many_is_a_line_each(run: Run, jobs: Written, folder: Path) -> None:
    path = jobs(
        {"output": "a", "loras": ["fox.safetensors", "cat.safetensors"]},
        {"output": "b", "loras": ["fox.safetensors", "copy.safetensors"]},
        {"output": "c", "loras": ["fox.safetensors", "cat.safetensors"], "options": {"effort": "layers"}},
    )
    before = listing(folder)
    result = run("merge", "--batch", path, "--dry-run")
    first, second, third = told(result)
    assert result.code == 1 and listing(folder) == before
    assert first["ok"] and first["seconds"] > third["seconds"] and first["stages"]["refining"] == STEPS["balanced"] * 3
    assert not second["ok"] and "is the same LoRA as" in second["error"]


def test_what_is_added_comes_after_what_is_there_and_the_file_is_the_start(
    run: Run, loaded: DiffusersHost, recipe: tuple[Merge, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = recipe
    seen: list[tuple[MergeRequest, Start]] = []

    def merge(request: MergeRequest, *_: object, start: Start, **__: object) -> Merge:
        seen.append((request, start))
        return made

    monkeypatch.setattr(merge_command, "merge_loras", merge)
    result = run(
        *("merge", "--add-to", str(path), "cat.safetensors:0.5", "--lora-dir", "inputs"),
        *("-o", "more", "--no-preview", "--trigger", "cat=ohwx cat", "--rank", "7"),
    )
    assert result.code == 0, result.err
    [(request, start)] = seen
    assert [concept.label for concept in request.concepts] == ["fox", "mono", "cat"]
    assert request.concepts[0] == replace(made.request.concepts[0], lora=str(Path("inputs", "fox.safetensors")))
    assert request.concepts[2].unet_weight == 0.5 and request.rank == "7" and request.seed == made.request.seed
    (merged,) = start.merges
    assert merged.labels == {"fox", "mono"} and set(merged.factors) == set(made.factors)
    key = min(made.factors)
    assert torch.allclose(merged.factors[key].dense(), made.factors[key].to(torch.float32).dense(), atol=1e-2)


@pytest.mark.usefixtures("loaded")
def test_nothing_to_add_and_a_file_that_went_on_are_refused(
    run: Run, recipe: tuple[Merge, Path], folder: Path, make_merge: MakeMerge
) -> None:
    _, path = recipe
    assert_refused(run("merge", "--add-to", str(path), "-o", "more"), "Nothing is named to add to")
    assert_refused(
        run("merge", "--add-to", "fox.safetensors", "cat.safetensors", "-o", "more"), "holds no LoRACLR recipe"
    )
    begun = replace(make_merge(), begun=Begun("0" * 64, ("fox",), 0))
    (went_on, _) = save_merge(begun, folder / "out" / "more.safetensors")
    assert_refused(
        run("merge", "--recipe-from", str(went_on), "-o", "again"),
        "went on from a finished merge",
        "name that one with --add-to",
    )


def test_merged_files_are_joined_where_they_have_no_concept_in_common(
    run: Run, loaded: DiffusersHost, recipe: tuple[Merge, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = recipe
    own = Concept(str(folder / "cat.safetensors"), trigger="ohwx cat")
    cat = replace(
        made,
        request=replace(made.request, concepts=(own,), rank="5"),
        inputs=(InputLora(own, LoraFile(folder / "cat.safetensors", {}, {}), {}),),
        report=replace(made.report, concepts=made.report.concepts[:1]),
    )
    other, *_ = save_merge(cat, folder / "out" / "cat-alone.safetensors")
    seen: list[tuple[MergeRequest, Start]] = []

    def merge(request: MergeRequest, *_: object, start: Start, **__: object) -> Merge:
        seen.append((request, start))
        return made

    monkeypatch.setattr(merge_command, "merge_loras", merge)
    both = ("merge", "--add-to", str(path), "--add-to", str(other), "--lora-dir", "inputs", "--lora-dir", str(folder))
    result = run(*both, "-o", "joined", "--no-preview")
    assert result.code == 0, result.err
    [(request, start)] = seen
    assert [concept.label for concept in request.concepts] == ["fox", "mono", "cat"]
    assert request.rank == made.request.rank, "asked for as the first was"
    assert [merge.labels for merge in start.merges] == [{"fox", "mono"}, {"cat"}]
    assert_refused(
        run("merge", "--add-to", str(path), "--add-to", str(path), "--lora-dir", "inputs", "-o", "twice"),
        "is in both",
        "leave one of them out",
    )


def test_what_had_no_room_in_the_work_folder_is_said_with_the_limit_that_has(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path, 1)
    assert left_out(None) == left_out(work) == ""
    work.keep("key", {"x": torch.zeros((1 << 20) + 1, dtype=torch.uint8)})
    assert "2 MB were not kept in the work folder" in left_out(work) and "--work-limit 4 " in left_out(work)
