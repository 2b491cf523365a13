"""What a merge would take, without merging."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib_loraclr.merge import forecasting
from lib_loraclr.merge.forecasting import forecast, seconds_per_sample
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.merge.start import Finished, Start
from lib_loraclr.progress import PlannedStage, Progress, Stage
from lib_loraclr.recording.sampling import BATCH
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little
from tests.tiny_hosts import Open, random_lora


class Planned(Progress):
    def plan(self, stages: list[PlannedStage]) -> None:
        self.planned = list(stages)


@pytest.fixture
def asked(opened: Open, tmp_path: Path) -> MergeRequest:
    host = opened(tiny.SD1)
    concepts = tuple(Concept(str(random_lora(tmp_path / f"{n}.safetensors", host, seed=n))) for n in (1, 2))
    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    return MergeRequest(concepts, options={"effort": "layers"}, prompts=PROMPTS, recording=recording)


def test_a_forecast_has_the_stages_of_the_merge_itself(
    opened: Open, asked: MergeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    host, progress = opened(tiny.SD1), Planned()
    looked = forecast(asked, host)
    merge_loras(asked, host, progress)
    assert list(looked.stages) == progress.planned
    assert not looked.examination.problems
    refined = forecast(replace(asked, options={}), host)
    assert Stage.REFINING in refined.seconds(0.5) and Stage.REFINING not in looked.seconds(0.5)
    assert refined.seconds(2.0)[Stage.REFINING] == 4 * refined.seconds(0.5)[Stage.REFINING] > 0
    assert refined.memory.ram > looked.memory.ram


def test_of_a_merge_that_goes_on_only_what_is_new_counts_as_new(
    opened: Open, asked: MergeRequest, tmp_path: Path
) -> None:
    host = opened(tiny.SD1)
    more = [str(random_lora(tmp_path / f"{n}.safetensors", host, seed=n)) for n in range(3, 7)]
    request = replace(asked, concepts=(*asked.concepts, *map(Concept, more)), options={"effort": "fast"})

    def steps(start: Start | None) -> int:
        return {item.stage: item.units for item in forecast(request, host, start).stages}[Stage.REFINING]

    assert steps(None) == 120
    assert steps(Start((Finished({}, frozenset({"1", "2", "3", "4", "5"})),))) == 60
    assert steps(Start((Finished({}, frozenset({"1"})),))) == 120, "control: with five of six new"


def test_what_stands_in_the_way_is_said_and_nothing_is_raised(opened: Open, asked: MergeRequest) -> None:
    looked = forecast(replace(asked, memory_mb=1), opened(tiny.SD1))
    assert any("memory budget of 1 MB is too small" in problem for problem in looked.examination.problems)


def test_the_middle_of_three_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loads kernels; one that another program delayed is no more the truth than the luckiest."""
    now, taken = [0.0], iter([100.0, 4.0, 40.0, 8.0])
    monkeypatch.setattr(forecasting, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow:
        pixels_per_latent, latent_channels, device = 8, 4, "cpu"
        encode = staticmethod(list)

        def denoise(self, x: torch.Tensor, *_: object) -> torch.Tensor:
            now[0] += next(taken)
            return x

    assert seconds_per_sample(Slow(), 64, 64) == 8.0 / (BATCH // 2)
