"""A merge that was ended goes on where it was, and nothing is recorded twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_loraclr.errors import Interrupted
from lib_loraclr.files.work_folder import WorkFolder
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.merging import merge_loras, refine_further
from lib_loraclr.output.merged import Merge
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.shelf import model_key
from lib_loraclr.request.merge_request import MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little, stop_by_little
from tests.tiny_hosts import Open, random_merge

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_merge_that_is_killed_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Ten times in development; with more kills: `python -m tests.merge.killed_merges FOLDER SEED KILLS`."""
    command = [sys.executable, "-m", "tests.merge.killed_merges", str(tmp_path), "1", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert len(told["went on"]) == len(told["killed"]) == 2
    assert {told["alone"], told["kept"], *told["went on"]} == {told["alone"]}
    # a merge that went on from its refinement did not record again what was recorded already
    for stage, repeated in zip(told["killed"], told["repeated"], strict=True):
        recorded = repeated[Stage.RECORDING.name], told["moments"][Stage.RECORDING.name]
        assert recorded[0] < recorded[1], stage


@pytest.fixture(scope="module", autouse=True)
def measured_on_little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        stop_by_little(patch)
        yield


@pytest.fixture
def host(opened: Open) -> DiffusersHost:
    return opened(tiny.SD1)


@pytest.fixture
def asked(host: DiffusersHost, tmp_path: Path) -> Callable[..., MergeRequest]:
    """Makes requests for merges of LoRAs with random factors, which have their seeds as names."""

    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    usual = {"options": {"steps": 2, "batch_size": 2, "scenes": 2}, "prompts": PROMPTS, "recording": recording}
    return lambda *seeds, **changes: random_merge(tmp_path, host, *seeds, **{**usual, **changes})


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of `Predictor.predict` has; cleared by the test."""
    seen, predict = [], Predictor.predict

    def counted(self: Predictor, active: Any, x: Any, *rest: Any, **named: Any) -> Any:
        seen.append(len(x))
        return predict(self, active, x, *rest, **named)

    monkeypatch.setattr(Predictor, "predict", counted)
    return seen


def same(one: Merge, other: Merge) -> bool:
    return all(
        torch.equal(one.factors[key].up, f.up) and torch.equal(one.factors[key].down, f.down)
        for key, f in other.factors.items()
    )


class StopsAt(Progress):
    def __init__(self, stage: Stage) -> None:
        self._stage, self._at = stage, False

    def start(self, stage: Stage, total: int) -> None:
        self._at = stage is self._stage

    def interrupted(self) -> bool:
        return self._at


def test_a_merge_that_was_interrupted_goes_on(
    asked: Callable[..., MergeRequest], host: DiffusersHost, tmp_path: Path, samples: list[int]
) -> None:
    request, work = asked(1, 2), WorkFolder(tmp_path / "work")
    expected, whole = merge_loras(request, host), sum(samples)
    with pytest.raises(Interrupted):
        merge_loras(request, host, StopsAt(Stage.CUTTING), work=work)
    samples.clear()
    found = merge_loras(request, host, work=work)
    assert same(found, expected) and found.report == expected.report
    assert 0 < sum(samples) < whole / 2, "only what is measured"


def test_what_depends_on_anything_else_is_not_found(
    asked: Callable[..., MergeRequest], host: DiffusersHost, tmp_path: Path, samples: list[int]
) -> None:
    work = WorkFolder(tmp_path / "work")

    def recorded(request: MergeRequest, work: WorkFolder | None) -> int:
        samples.clear()
        with pytest.raises(Interrupted):
            merge_loras(request, host, StopsAt(Stage.TEXT_INPUTS), work=work)
        return sum(samples)

    assert recorded(asked(1, 2), work) == recorded(asked(1, 2), None) > 0
    assert recorded(asked(1, 2), work) == 0, "control"
    for request in (asked(1, 2, seed=1), asked(1, 2, prompts=replace(PROMPTS, quality="sharp", negative="blurred"))):
        assert recorded(request, work) == recorded(request, None)
    guided = asked(1, 2, recording=replace(asked(1, 2).recording, guidance=5.0))
    assert recorded(guided, work) == recorded(guided, None), "guidance leads another way"
    weaker = asked(1, 2, concepts=tuple(replace(c, unet_weight=0.5) for c in asked(1, 2).concepts))
    base = recorded(weaker, None) - recorded(weaker, work)
    assert 0 < base < recorded(weaker, None) / 2, "what no LoRA has a part in is the same"


def test_concepts_that_were_merged_before_are_not_followed_again_when_one_is_added(
    asked: Callable[..., MergeRequest], host: DiffusersHost, tmp_path: Path, samples: list[int]
) -> None:
    from lib_loraclr.merge.start import Finished, Start

    work = WorkFolder(tmp_path / "work")
    two = merge_loras(asked(1, 2), host, work=work)
    start = Start((Finished(two.factors, frozenset({"1", "2"})),), steps=2)
    samples.clear()
    expected = merge_loras(asked(1, 2, 3), host, start=start)
    alone = sum(samples)
    samples.clear()
    assert same(merge_loras(asked(1, 2, 3), host, start=start, work=work), expected)
    assert sum(samples) < 0.8 * alone


def test_refined_further_records_nothing_again(
    asked: Callable[..., MergeRequest], host: DiffusersHost, tmp_path: Path, samples: list[int]
) -> None:
    work = WorkFolder(tmp_path / "work")
    merge = merge_loras(asked(1, 2), host, work=work)
    expected = refine_further(merge, host, steps=2)
    samples.clear()
    assert same(refine_further(merge, host, steps=2, work=work), expected)
    measured = sum(samples)
    samples.clear()
    refine_further(merge, host, steps=2)
    assert measured < sum(samples) / 2


def test_a_model_s_key_changes_with_whatever_changes_its_predictions(host: DiffusersHost) -> None:
    before = model_key(host, {})
    assert model_key(host, {}) == before
    assert model_key(host, {"bundle_emb.a": torch.ones(1, 2)}) != before
    with host.skipping(2):
        assert model_key(host, {}) != before
    bias = next(layer.weight for layer in host.layers().values() if layer.is_vector)
    own = bias.clone()
    bias += 0.5
    try:
        assert model_key(host, {}) != before, "not the file that it was loaded from"
    finally:
        bias.copy_(own)
    assert model_key(host, {}) == before


def test_a_full_work_folder_is_a_warning(
    asked: Callable[..., MergeRequest], host: DiffusersHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = WorkFolder(tmp_path / "work")
    work.trouble = "Nothing more is kept in the work folder: it is full."
    assert work.trouble in merge_loras(asked(1, 2, options={"effort": "layers"}), host, work=work).report.warnings
