"""Several merges from one recording: each as it would be by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.merge.several import Several
from lib_loraclr.model.host import Host
from lib_loraclr.output.preview import PreviewOptions, draw_pictures
from lib_loraclr.progress import Progress, Stage
from tests.small import measure_on_little, request

OPTIONS = {"steps": 1, "batch_size": 2, "scenes": 2}


class Listening(Progress):
    """Notes which stages there were."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def start(self, stage: Stage, total: int) -> None:
        self.stages.append(stage)


@pytest.fixture(scope="module", autouse=True)
def little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        yield


@pytest.fixture(scope="module")
def several(demo: Path, host: Host) -> Several:
    return Several(request(demo, "pizza", "fox-face"), host, Listening())


def test_a_merge_is_the_one_that_it_would_be_by_itself(several: Several, demo: Path, host: Host) -> None:
    """Also after another, from whose recording it starts."""
    asked = request(demo, "pizza", "fox-face", method="contrastive", options=OPTIONS)
    expected = merge_loras(asked, host)
    several.merge("ridge", {})
    several.progress.stages.clear()
    made = several.merge("contrastive", OPTIONS)
    assert Stage.RECORDING not in several.progress.stages and Stage.REFINING in several.progress.stages
    assert made.factors.keys() == expected.factors.keys()
    for key, own in made.factors.items():
        assert torch.equal(own.up, expected.factors[key].up) and torch.equal(own.down, expected.factors[key].down)
    assert made.notes["steps"] == 1 and made.rank == pytest.approx(expected.report.rank[1])
    kept = several.retention(made.factors)
    labels = [lora.concept.label for lora in several.inputs]
    told = {concept.name: concept.merged for concept in expected.report.concepts}
    assert dict(zip(labels, kept.concepts, strict=True)) == pytest.approx(told)
    assert kept.base_drift == pytest.approx(expected.report.base_drift)


def test_what_looks_at_no_inputs_records_none(demo: Path, host: Host) -> None:
    fresh = Several(request(demo, "pizza", "fox-face"), host, Listening())
    fresh.merge("average", {})
    assert Stage.RECORDING not in fresh.progress.stages
    fresh.merge("ridge", {})
    assert Stage.RECORDING in fresh.progress.stages, "control: the first that does, does"


def test_a_merge_can_be_drawn(several: Several, host: Host) -> None:
    made = several.merge("average", {})
    merge = several.finished(made, several.retention(made.factors))
    assert [concept.name for concept in merge.report.concepts] == [lora.concept.label for lora in several.inputs]
    pictures = draw_pictures(merge, host, PreviewOptions(steps=1, pairs=1))
    assert pictures.sheet.width > 0


def test_what_cannot_be_merged_is_refused_at_once(demo: Path, host: Host) -> None:
    with pytest.raises(LoraclrError):
        Several(replace(request(demo, "pizza"), concepts=()), host)
