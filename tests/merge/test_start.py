"""Going on from a finished merge: refined further, and with concepts added."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import serialize
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge import stage_plan, stages
from lib_loraclr.merge.merging import merge_loras, refine_further
from lib_loraclr.merge.start import Finished, Networks, Start, as_layers, ordered
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.output.saving import first_concepts, lora_metadata
from lib_loraclr.progress import PlannedStage, Progress, Stage
from lib_loraclr.recording.inputs import InputLora
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little, stop_by_little
from tests.tiny_hosts import Open, random_merge

OPTIONS = {"steps": 8, "batch_size": 4, "scenes": 2, "learning_rate": 0.002}


class Seen(Progress):
    """Remembers which stages were planned, and which began."""

    def __init__(self) -> None:
        self.planned: list[Stage] = []
        self.began: list[Stage] = []

    def plan(self, stages: list[PlannedStage]) -> None:
        self.planned = [item.stage for item in stages]

    def start(self, stage: Stage, total: int) -> None:
        self.began.append(stage)


@pytest.fixture(scope="module", autouse=True)
def measured_on_little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=2, steps=4)
        stop_by_little(patch)
        yield


@pytest.fixture(scope="module")
def host(opened: Open) -> DiffusersHost:
    return opened(tiny.SD1)


@pytest.fixture(scope="module")
def asked(host: DiffusersHost, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., MergeRequest]:
    """Makes requests for merges of LoRAs with random factors, which have their seeds as names."""
    folder = tmp_path_factory.mktemp("loras")

    recording = RecordingOptions(paths=2, steps=4, renoised=4, guidance=4.0, height=64, width=64)
    usual = {"options": OPTIONS, "prompts": PROMPTS, "recording": recording}
    return lambda *seeds, **changes: random_merge(folder, host, *seeds, **{**usual, **changes})


@pytest.fixture(scope="module")
def two(asked: Callable[..., MergeRequest], host: DiffusersHost, measured_on_little: None) -> Merge:
    return merge_loras(asked(1, 2), host)


def retention(merge: Merge) -> float:
    return sum(told.merged for told in merge.report.concepts) / len(merge.report.concepts)


def test_refined_further_is_another_merge_with_more_kept_and_the_first_stays(
    asked: Callable[..., MergeRequest], host: DiffusersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the points that are learnt from, as at this size they teach little about others."""

    def learnt_from(request: MergeRequest, most: int | None = None) -> PathPlan:
        # at those of the negative prompt no concept has an effect
        return replace(stage_plan.learning_paths(request, most), negative_every=0)

    for paths in ("stopping_paths", "measuring_paths"):
        monkeypatch.setattr(stages, paths, learnt_from)
    options = {"steps": 1, "batch_size": 6, "scenes": 2, "learning_rate": 0.001}
    first = merge_loras(asked(1, 2, options=options), host).light()
    before = {key: f.up.clone() for key, f in first.factors.items()}
    more = refine_further(first, host, steps=40)
    assert retention(more) > retention(first) + 0.03
    assert more.report.refinement["steps"] == 40
    assert all(torch.equal(first.factors[key].up, up) for key, up in before.items())
    assert [told.all_tags for told in more.report.concepts] == [told.all_tags for told in first.report.concepts], (
        "measured on the same points"
    )


def test_nothing_is_merged_layer_by_layer_again_and_the_plan_says_so(host: DiffusersHost, two: Merge) -> None:
    seen = Seen()
    refine_further(two, host, seen, steps=2)
    assert seen.began == seen.planned
    assert Stage.REFINING in seen.began
    assert not {Stage.TEXT_INPUTS, Stage.TEXT_LAYERS, Stage.UNET_INPUTS, Stage.UNET_LAYERS} & set(seen.began)


def test_the_file_says_what_it_went_on_from_and_the_same_start_gives_the_same_bytes(
    host: DiffusersHost, two: Merge
) -> None:
    def bytes_of(merge: Merge) -> bytes:
        return serialize(lora_tensors(merge), lora_metadata(merge, "merged"))

    more, again = (refine_further(two, host, steps=2) for _ in range(2))
    assert bytes_of(more) == bytes_of(again)
    begun = json.loads(lora_metadata(more, "merged")["loraclr.begun"])
    assert begun["hash"] == Finished(two.factors, frozenset()).hash
    assert (sorted(begun["concepts"]), begun["steps"]) == (["1", "2"], 2)
    assert "loraclr.begun" not in lora_metadata(two, "merged")
    assert begun["hash"] != Finished(more.factors, frozenset()).hash, "control: other factors are another start"


def test_a_concept_is_added_to_a_finished_merge(
    asked: Callable[..., MergeRequest], host: DiffusersHost, two: Merge
) -> None:
    start = Start((Finished(two.factors, frozenset({"1", "2"})),), steps=2)
    merge = merge_loras(asked(3, 2, 1), host, start=start)
    assert [told.name for told in merge.report.concepts] == ["3", "2", "1"]
    assert merge.begun.hash == start.hash and set(merge.begun.concepts) == {"1", "2"}
    # the concepts that were there already keep more than where their merge is not what is begun with
    noise = {key: Factors(torch.randn_like(f.up.float()) * 0.01, f.down) for key, f in two.factors.items()}
    lost_start = replace(start, merges=(replace(start.merges[0], factors=noise),))
    control = merge_loras(asked(3, 2, 1), host, start=lost_start)
    kept, lost = ([told.merged for told in found.report.concepts[1:]] for found in (merge, control))
    assert sum(kept) > sum(lost) + 0.03


def inputs_of(*labels: str) -> list[InputLora]:
    """Inputs with one layer each, whose factors tell them apart."""
    return [
        InputLora(Concept(f"{label}.safetensors"), None, {"layer": Factors(torch.ones(2, 1) * k, torch.ones(1, 3))})
        for k, label in enumerate(labels, start=1)
    ]


def test_a_start_stands_for_the_concepts_that_are_in_it() -> None:
    inputs = inputs_of("a", "b", "c", "d")
    layer = {"layer": Factors(torch.zeros(2, 1), torch.ones(1, 3))}
    start = Start((Finished(layer, frozenset({"a", "c"})),))
    networks = Networks(inputs, start)
    assert [float(f.up.sum()) for f in networks.deltas("layer")] == [0, 4, 8]
    assert networks.of((0, 1, 2)) == (0, 1)
    assert networks.of((3,)) == (2,)
    assert networks.deltas("another") == [None] * 3
    without = Networks(inputs, None)
    assert [float(f.up.sum()) for f in without.deltas("layer")] == [2, 4, 6, 8]
    assert without.of((3, 1)) == (1, 3)


def test_joined_merges_stand_for_their_own_concepts_each() -> None:
    inputs = inputs_of("a", "b", "c", "d", "e")
    layer = [{"layer": Factors(torch.ones(2, 1) * k, torch.ones(1, 3))} for k in (10, 20)]
    start = Start((Finished(layer[0], frozenset({"a", "d"})), Finished(layer[1], frozenset({"b", "e"}))))
    networks = Networks(inputs, start)
    assert [float(f.up.sum()) for f in networks.deltas("layer")] == [20, 40, 6], "the third is a concept of its own"
    assert [networks.of((k,)) for k in range(5)] == [(0,), (1,), (2,), (0,), (1,)]
    assert start.labels == {"a", "b", "d", "e"}
    assert start.hash not in {merge.hash for merge in start.merges}
    assert start.hash != Start(start.merges[::-1]).hash, "in another order other seeds are drawn"


def test_two_finished_merges_are_joined(
    asked: Callable[..., MergeRequest], host: DiffusersHost, two: Merge, measured_on_little: None
) -> None:
    other = merge_loras(asked(3, 4), host)
    start = Start(tuple(Finished(merge.factors, labels_of(merge)) for merge in (two, other)), steps=1)
    joined = merge_loras(asked(1, 3, 2, 4), host, start=start)
    assert [told.name for told in joined.report.concepts] == ["1", "3", "2", "4"]
    assert set(joined.begun.concepts[:2]) == {"1", "2"} and set(joined.begun.concepts[2:]) == {"3", "4"}
    assert joined.begun.hash == start.hash
    # nothing of the second would be in the layers if it did not stand for its concepts
    away = {key: Factors(f.up * 0, f.down) for key, f in other.factors.items()}
    without = replace(start, merges=(start.merges[0], replace(start.merges[1], factors=away)))
    control = merge_loras(asked(1, 3, 2, 4), host, start=without)
    key = max(other.factors, key=lambda key: float(other.factors[key].dense().norm()))
    own = other.factors[key].dense().float().flatten()
    along = [
        float(merge.factors[key].dense().float().flatten() @ own / own.square().sum()) for merge in (joined, control)
    ]
    assert along[0] > along[1] + 0.1


def labels_of(merge: Merge) -> frozenset[str]:
    return frozenset(concept.label for concept in merge.request.concepts)


def test_what_was_there_keeps_its_numbers_through_merges_that_go_on_from_each_other() -> None:
    """Seeds go by numbers, so that what was recorded of a concept is found again."""
    inputs = [
        replace(lora, file=SimpleNamespace(hash=digest))
        for lora, digest in zip(inputs_of("a", "b", "c", "d", "e"), "31524", strict=True)
    ]

    def numbered(start: Start | None, *labels: str) -> str:
        return "".join(lora.concept.label for lora in ordered([x for x in inputs if x.concept.label in labels], start))

    assert numbered(None, *"ace") == "aec"
    once = Start((Finished({}, frozenset("ac")),))
    assert numbered(once, *"abc") == "acb"
    twice = Start((Finished({}, frozenset("abc"), first=("a", "c")),))
    assert numbered(twice, *"abc") == "acb"
    assert numbered(twice, *"abcde") == "acbde"
    assert numbered(Start((Finished({}, frozenset("abc")),)), *"abcde") == "bacde", "control: by hash alone"


def test_the_order_is_read_from_a_file_and_a_changed_one_costs_nothing_but_time() -> None:
    def first(begun: object) -> tuple[str, ...]:
        return first_concepts({"loraclr.begun": begun if isinstance(begun, str) else json.dumps(begun)})

    assert first({"hash": "", "concepts": ["b", "a"], "steps": 0}) == ("b", "a")
    assert first_concepts({}) == first("[") == first([]) == first({"concepts": 5}) == first({"concepts": [5]}) == ()


def test_steps_are_a_third_and_grow_with_what_is_new() -> None:
    whole = RefinementOptions(Terms(), 120, 6, 6, 0.01)

    def steps(labels: str, asked: int = 0) -> int:
        return Start((Finished({}, frozenset(labels)),), asked).refinement(whole, "abcdefgh").steps

    assert (steps("abcdefgh"), steps("abcdefg")) == (40, 45), "a third, and three times an eighth"
    assert steps("abcdef") == 90, "three times two eighths"
    assert steps("a") == steps("abcde") == 120, "never more than from nothing"
    assert steps("abc", asked=7) == 7


def test_what_is_new_is_told_by_its_number() -> None:
    whole = RefinementOptions(Terms(), 120, 6, 6, 0.01)
    start = Start((Finished({}, frozenset("ac")), Finished({}, frozenset("d"))))
    assert start.refinement(whole, "acdb").new == {3} and start.refinement(whole, "acdbe").new == {3, 4}
    assert whole.new == start.refinement(whole, "acd").new == frozenset(), "where all are, none has more to learn"


def test_a_layer_that_the_finished_merge_leaves_alone_does_nothing() -> None:
    merge = Finished({"one": Factors(torch.ones(2, 1).half(), torch.ones(1, 3).half())}, frozenset())
    layers = as_layers(merge, {"one": (2, 3), "two": (4, 5)})
    assert layers["one"].factors.up.dtype == torch.float32
    assert layers["two"].factors.dense().count_nonzero() == 0
    assert layers["two"].factors.shape == (4, 5)


def test_what_cannot_be_gone_on_from_is_refused(
    host: DiffusersHost, two: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = replace(two, request=replace(two.request, options={"effort": "layers"}))
    with pytest.raises(
        LoraclrError, match=r"only be gone on from with a refinement.*effort fast, balanced or thorough"
    ):
        refine_further(layers, host)
    copy = tmp_path / "1.safetensors"
    copy.write_bytes(Path(two.inputs[0].file.path).read_bytes())
    moved = replace(two.inputs[0], file=replace(two.inputs[0].file, path=copy))
    assert moved.file.hash == two.inputs[0].file.hash
    copy.write_bytes(copy.read_bytes()[:-1] + b"!")
    with pytest.raises(LoraclrError, match="1.safetensors was changed since it was merged"):
        refine_further(replace(two, inputs=(moved, two.inputs[1])), host)
    copy.unlink()
    # the same checkpoint by another name is not refused for it
    monkeypatch.setattr(host, "checkpoint", f"{host.checkpoint} [a9ade0dac6]")
    with pytest.raises(LoraclrError, match=r"There is no file .*1\.safetensors"):
        refine_further(replace(two, inputs=(moved, two.inputs[1])), host)
    monkeypatch.setattr(host, "checkpoint_path", tmp_path / "another.safetensors")
    monkeypatch.setattr(host, "checkpoint", "another.safetensors")
    with pytest.raises(LoraclrError, match=r"made on .*tiny.*another\.safetensors is loaded"):
        refine_further(two, host)
