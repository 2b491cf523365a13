"""A graphics card that runs out of memory while layers are merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from lib_loraclr.merge import layer_merging
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.host import Host
from lib_loraclr.output.merged import Merge
from lib_loraclr.recording import sampling
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little
from tests.tiny_hosts import Open, random_lora


@pytest.fixture
def small(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Host, MergeRequest]:
    """Two random LoRAs to merge on a tiny checkpoint, recorded and measured on little."""
    measure_on_little(monkeypatch, paths=1, steps=2)
    monkeypatch.setattr(sampling, "_holds", WeakKeyDictionary())  # the host is every test's
    host = opened(tiny.SD1)
    concepts = tuple(Concept(str(random_lora(tmp_path / f"{n}.safetensors", host, seed=n))) for n in (1, 2))
    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    return host, MergeRequest(concepts, prompts=PROMPTS, recording=recording)


def test_layers_that_do_not_fit_are_merged_on_the_cpu_and_the_report_says_so(
    small: tuple[Host, MergeRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = small
    asked = replace(asked, method="ridge")
    usual, full = merge_loras(asked, host), 0
    merge_layer = layer_merging.merge_layer

    def small_card(problem: Any, *rest: Any) -> Any:
        nonlocal full
        if not full % 3:  # the first of them, and then some
            full += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        full += 1
        return merge_layer(problem, *rest)

    monkeypatch.setattr(layer_merging, "merge_layer", small_card)
    spared: Merge = merge_loras(asked, host)
    told = [warning for warning in spared.report.warnings if "merged on the CPU, which takes longer" in warning]
    assert len(told) == 1 and full > 10, "once, however many layers there were"
    assert not any("on the CPU" in warning for warning in usual.report.warnings), "control"
    for key, factors in usual.factors.items():
        assert torch.equal(spared.factors[key].up, factors.up) and torch.equal(spared.factors[key].down, factors.down)


def test_a_refinement_that_does_not_fit_leaves_the_layer_wise_merge_and_the_report_says_so(
    small: tuple[Host, MergeRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = small
    asked = replace(asked, options={"steps": 2}, rank="full")
    usual, layers = merge_loras(asked, host), merge_loras(replace(asked, options={"effort": "layers"}), host)
    denoise = host.denoise

    def small_card(*inputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return denoise(*inputs)

    monkeypatch.setattr(host, "denoise", small_card, raising=False)
    spared = merge_loras(asked, host)
    said = "too small to refine this merge even one sample at a time: it ended after 0 of 2 steps"
    assert any(said in warning for warning in spared.report.warnings)
    assert not any("graphics memory" in warning for warning in usual.report.warnings), "control"
    assert spared.report.refinement["reason"] == "memory" and usual.report.refinement["samples"] > 0
    for key, factors in layers.factors.items():
        expected, found = factors.dense().float(), spared.factors[key].dense().float()
        torch.testing.assert_close(found, expected, rtol=0.01, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("learning", "said"),
    [
        (False, "The graphics memory ran out while the model was asked: from then on it was asked for 1 at a time"),
        (True, "The graphics memory ran out while the merge was refined: from then on samples were run 1 at a time"),
    ],
    ids=["asked", "refined"],
)
def test_samples_that_do_not_fit_at_a_time_are_run_in_parts_and_the_report_says_so(
    small: tuple[Host, MergeRequest], monkeypatch: pytest.MonkeyPatch, learning: bool, said: str
) -> None:
    host, asked = small
    asked = replace(asked, options={"steps": 2, "batch_size": 4}, rank="full")
    usual, run = merge_loras(asked, host), 0
    denoise = host.denoise

    def small_card(x: torch.Tensor, *inputs: Any) -> Any:
        nonlocal run
        run += torch.is_grad_enabled()
        # the look at what fits, at one sample and at two, is over
        if len(x) > 1 and torch.is_grad_enabled() == learning and (run > 2 or not learning):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return denoise(x, *inputs)

    monkeypatch.setattr(host, "denoise", small_card, raising=False)
    spared = merge_loras(asked, host)
    assert sum(said in warning for warning in spared.report.warnings) == 1
    assert not any("ran out" in warning for warning in usual.report.warnings), "control"
    assert spared.report.refinement["steps"] == 2
    for concept, expected in zip(spared.report.concepts, usual.report.concepts, strict=True):
        assert concept.merged == pytest.approx(expected.merged, abs=0.05), "it takes longer, and changes nothing else"


def test_another_error_ends_the_merge(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = opened(tiny.SD1)
    concept = Concept(str(random_lora(tmp_path / "1.safetensors", host, seed=1)))

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(layer_merging, "merge_layer", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        merge_loras(MergeRequest((concept,), method="weighted_sum", prompts=PROMPTS), host)
