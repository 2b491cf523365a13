"""What was recorded of the LoRAs alone is held, and not recorded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.followed import Followed
from lib_loraclr.merge.merging import merge_loras, refine_further
from lib_loraclr.output.merged import Merge
from lib_loraclr.progress import PlannedStage, Progress, Stage
from lib_loraclr.request.merge_request import MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little
from tests.tiny_hosts import Open, random_merge

OPTIONS = {"steps": 2, "batch_size": 4, "scenes": 2, "learning_rate": 0.002}
#: what is recorded of the LoRAs alone
FOLLOWED = {Stage.RECORDING, Stage.HOLDING_BACK, Stage.TESTING}


class Counting(Progress):
    """Counts the samples that the model is really run on, stage by stage, and remembers what was planned."""

    def __init__(self, host: DiffusersHost, patch: pytest.MonkeyPatch) -> None:
        self.stage, self.evaluated = Stage.READING, Counter[Stage]()
        self.planned: dict[Stage, int] = {}
        unet = host.unet
        whole = unet.forward

        def counted(x: torch.Tensor, *arguments: object, **named: object) -> object:
            self.evaluated[self.stage] += len(x)
            return whole(x, *arguments, **named)

        patch.setattr(unet, "forward", counted)

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        self.planned = {item.stage: item.units for item in stages}

    def start(self, stage: Stage, total: int) -> None:
        assert total == self.planned.get(stage, total), "the plan says what a stage takes"
        self.stage = stage


@pytest.fixture(scope="module", autouse=True)
def measured_on_little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        yield


@pytest.fixture(scope="module")
def host(opened: Open) -> DiffusersHost:
    return opened(tiny.SD1)


@pytest.fixture(scope="module")
def asked(host: DiffusersHost, tmp_path_factory: pytest.TempPathFactory) -> MergeRequest:
    recording = RecordingOptions(paths=2, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    folder = tmp_path_factory.mktemp("loras")
    return random_merge(folder, host, 1, 2, options=OPTIONS, prompts=PROMPTS, recording=recording)


@pytest.fixture(scope="module")
def first(host: DiffusersHost, asked: MergeRequest) -> tuple[Merge, Followed]:
    followed = Followed()
    return merge_loras(asked, host, followed=followed).light(), followed


def same(one: Merge, other: Merge) -> bool:
    return all(
        torch.equal(one.factors[key].up, other.factors[key].up)
        and torch.equal(one.factors[key].down, other.factors[key].down)
        for key in one.factors
    )


def test_refining_further_evaluates_nothing_of_what_was_recorded_and_gives_the_same(
    host: DiffusersHost, first: tuple[Merge, Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, followed = first
    again = Counting(host, monkeypatch)
    expected = refine_further(merge, host, again)
    assert all(again.evaluated[stage] for stage in FOLLOWED), "control: without it everything is recorded again"
    seen = Counting(host, monkeypatch)
    more = refine_further(merge, host, seen, followed=followed)
    assert not FOLLOWED & set(seen.evaluated) and not FOLLOWED & set(seen.planned)
    assert seen.evaluated[Stage.REFINING] == again.evaluated[Stage.REFINING] > 0
    assert 0 < seen.evaluated[Stage.MEASURING] == seen.planned[Stage.MEASURING] < again.evaluated[Stage.MEASURING]
    assert same(more, expected) and more.report == expected.report


def test_with_another_importance_nothing_is_recorded_again_either_and_it_counts(
    host: DiffusersHost, first: tuple[Merge, Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, followed = first
    heavy, light = merge.request.concepts
    weighed = replace(merge, request=replace(merge.request, concepts=(replace(heavy, importance=9.0), light)))
    seen = Counting(host, monkeypatch)
    more = refine_further(weighed, host, seen, followed=followed)
    assert not FOLLOWED & set(seen.evaluated)
    assert same(more, refine_further(weighed, host)) and not same(more, refine_further(merge, host, followed=followed))


@pytest.mark.parametrize("changed", ["negative", "seed", "trigger"])
def test_what_was_recorded_for_something_else_is_recorded_again(
    host: DiffusersHost,
    asked: MergeRequest,
    first: tuple[Merge, Followed],
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    own = Followed(first[1].asked, dict(first[1].examples), first[1].before)
    one, other = asked.concepts
    request = {
        "negative": replace(asked, prompts=replace(asked.prompts, negative="ugly")),
        "seed": replace(asked, seed=5),
        "trigger": replace(asked, concepts=(replace(one, trigger="another"), other)),
    }[changed]
    seen = Counting(host, monkeypatch)
    made = merge_loras(request, host, seen, followed=own)
    assert all(seen.evaluated[stage] for stage in FOLLOWED)
    assert same(made, merge_loras(request, host)) and own.asked != first[1].asked


def test_what_it_takes_is_known(first: tuple[Merge, Followed]) -> None:
    point = 4 * 8 * 8 * 2
    held = [own for every in first[1].examples.values() for own in every]
    latents = sum(len(own) * (3 if own.other is not None else 2) for own in held)
    beside = sum(len(own) * (8 + 4 + 1) for own in held)  # a timestep, an effect, and whether there is a partner
    assert first[1].size == latents * point + beside


def test_a_method_that_records_nothing_has_measured_alone(host: DiffusersHost, asked: MergeRequest) -> None:
    followed = Followed()
    merge_loras(replace(asked, method="average", options={}), host, followed=followed)
    assert set(followed.examples) == {Stage.TESTING}
