"""Methods side by side: what the doors show of them, and the plan that their bars go by."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files import is_text_encoder
from lib_loraclr.merge.comparison import DRAWN, Outcome, comparable, drawn, outcome_of, placed, plan_comparison
from lib_loraclr.merge.several import Made, Several
from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.preview import PreviewOptions, draw_pictures
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.refining.retention import Retention
from lib_loraclr.solving import METHODS, all_baselines
from tests.small import measure_on_little, request, stop_by_little

ASKED = {
    "average": {},
    "contrastive": {"steps": 1, "batch_size": 2, "scenes": 2},
    "ridge": {},
    "weighted_sum": {},
}


class Counting(Progress):
    """Notes the stages of each method, what they were said to take, and what they took."""

    def __init__(self) -> None:
        self.rounds: list[list[list]] = []

    def start(self, stage: Stage, total: int) -> None:
        self.rounds[-1].append([stage, total, 0])

    def advance(self, units: int = 1, note: str = "") -> None:
        self.rounds[-1][-1][2] += units


@pytest.fixture(scope="module", autouse=True)
def little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        stop_by_little(patch)
        yield


def outcome(method: str, *concepts: float) -> Outcome:
    factors = {"layer": Factors(torch.zeros(1, 1), torch.zeros(1, 1))}
    return Outcome(Made(method, factors, 1.0, {}), Retention(concepts, 0.0), 1.0)


def test_the_best_come_first_and_they_alone_keep_what_drawing_needs() -> None:
    for order in permutations((0.1, 0.4, 0.2, 0.5, 0.3)):
        found: list[Outcome] = []
        for mean in order:
            found = placed(found, outcome(str(mean), mean - 0.05, mean + 0.05))
        assert [own.made.method for own in found] == ["0.5", "0.4", "0.3", "0.2", "0.1"], order
        assert [bool(own.made.factors) for own in found] == [True] * DRAWN + [False] * 2


def test_all_methods_are_those_that_doors_offer_and_those_of_others() -> None:
    assert comparable() == [*METHODS, *all_baselines()] and len(set(comparable())) == len(comparable()) > 10


@pytest.fixture(scope="module")
def compared(demo: Path, host: Host) -> tuple[Several, list[Outcome], Counting]:
    progress = Counting()
    progress.rounds.append([])
    several = Several(request(demo, "pizza", "fox-face", rank="4"), host, progress)
    outcomes: list[Outcome] = []
    for number, (method, options) in enumerate(ASKED.items()):
        if number:  # reading is part of the first
            progress.rounds.append([])
        outcomes = placed(outcomes, outcome_of(several, method, options))
    return several, outcomes, progress


def test_the_plan_is_what_is_done(compared: tuple[Several, list[Outcome], Counting], demo: Path, host: Host) -> None:
    """Each method's stages in their order, each of as many units as it was said to take, and as it took."""
    several, _, progress = compared
    keys = [key for lora in several.inputs for key in lora.deltas]
    text = len({key for key in keys if is_text_encoder(key)})
    planned = plan_comparison(several.request, ASKED, layers=(text, len({*keys}) - text))
    assert [[item.stage for item in own] for own in planned] == [
        [stage for stage, *_ in own] for own in progress.rounds
    ]
    exact = {Stage.RECORDING, Stage.TEXT_LAYERS, Stage.UNET_LAYERS, Stage.HOLDING_BACK, Stage.TESTING, Stage.MEASURING}
    for own, seen in zip(planned, progress.rounds, strict=True):
        for item, (stage, said, took) in zip(own, seen, strict=True):
            if stage in exact:
                assert item.units == said == took, stage


def test_the_first_that_looks_records_and_the_first_that_refines_holds_back(
    compared: tuple[Several, list[Outcome], Counting],
) -> None:
    stages = [{stage for stage, *_ in own} for own in compared[2].rounds]
    assert [Stage.RECORDING in own for own in stages] == [False, True, False, False]
    assert [Stage.HOLDING_BACK in own for own in stages] == [False, True, False, False]
    assert [Stage.TESTING in own for own in stages] == [True, False, False, False]
    assert all(Stage.MEASURING in own for own in stages)


def test_each_is_measured_as_by_itself(
    compared: tuple[Several, list[Outcome], Counting], demo: Path, host: Host
) -> None:
    _, outcomes, _ = compared
    alone = Several(request(demo, "pizza", "fox-face", rank="4"), host)
    expected = alone.retention(alone.merge("weighted_sum", {}).factors)
    found = next(own for own in outcomes if own.made.method == "weighted_sum")
    assert found.retention.concepts == pytest.approx(expected.concepts)
    assert found.retention.base_drift == pytest.approx(expected.base_drift)
    assert found.seconds > 0


def test_the_best_are_drawn_as_they_were_merged(
    compared: tuple[Several, list[Outcome], Counting],
) -> None:
    several, outcomes, progress = compared
    progress.rounds.append([])
    options = PreviewOptions(steps=1, pairs=1)
    cards = [np.asarray(drawn(several, own, options).card, dtype=float) for own in outcomes[:DRAWN]]
    assert all((cards[0] != other).any() for other in cards[1:]), "each by its own merge"
    [stage, said, took] = progress.rounds[-1][-1]
    assert stage is Stage.DRAWING and said == took
    again = several.merge(outcomes[0].made.method, ASKED[outcomes[0].made.method])
    merge = several.finished(again, outcomes[0].retention)
    assert (np.asarray(draw_pictures(merge, several.host, options).card) == cards[0]).all()


def test_what_a_method_does_not_take_is_refused_before_anything_is_merged(demo: Path) -> None:
    with pytest.raises(LoraclrError, match="speed"):
        plan_comparison(request(demo, "pizza", "fox-face"), {"average": {"speed": 3}}, layers=(1, 1))
    with pytest.raises(LoraclrError, match="did you mean 'ties'"):
        plan_comparison(request(demo, "pizza", "fox-face"), {"tie": {}}, layers=(1, 1))
