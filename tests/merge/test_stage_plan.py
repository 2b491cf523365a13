"""What a merge says it will do is what it does: stage for stage, and unit for unit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lib_loraclr.merge.merging import measure_loras, merge_loras
from lib_loraclr.merge.stage_plan import learning_paths, measuring_paths, plan_stages, stopping_paths
from lib_loraclr.model.host import Host
from lib_loraclr.progress import PlannedStage, Progress, Stage
from lib_loraclr.recording.teachers import Teacher, make_teachers
from lib_loraclr.request.merge_request import RecordingOptions
from lib_loraclr.request.phrases import Part
from lib_loraclr.solving.methods import Procedure
from tests.small import measure_on_little, request


class Noted(Progress):
    """What was planned, and what was begun and done."""

    def __init__(self) -> None:
        self.planned: list[tuple[Stage, int]] = []
        self.begun: list[tuple[Stage, int]] = []
        self.done: dict[Stage, int] = {}

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        self.planned += [(item.stage, item.units) for item in stages]

    def start(self, stage: Stage, total: int) -> None:
        self.begun.append((stage, total))

    def advance(self, units: int = 1, note: str = "") -> None:
        if self.begun:
            stage = self.begun[-1][0]
            self.done[stage] = self.done.get(stage, 0) + units


REFINED = {"options": {"effort": "balanced", "steps": 2, "batch_size": 2, "scenes": 2}}


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (("fox-face", "pizza"), {"method": "average", "options": {}}),
        (("fox-face", "style-clay"), {}),
        (("fox-face", "pizza", "style-mono"), {}),
        (("fox-face", "pizza", "penguin"), REFINED),
        (("fox-face", "pizza"), {**REFINED, "rank": "full"}),
    ],
    ids=["nothing recorded", "layer by layer", "style without words on two", "refined", "refined and not cut"],
)
def test_a_merge_follows_its_plan(
    demo: Path, host: Host, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], changes: dict
) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    noted = Noted()
    recording = RecordingOptions(paths=2, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    merge_loras(request(demo, *names, **{"recording": recording, **changes}), host, noted)
    assert [stage for stage, _ in noted.begun] == [stage for stage, _ in noted.planned]
    begun, planned = dict(noted.begun), dict(noted.planned)
    # of the prompts only how many there are at most: those that are the same are encoded once
    prompts = {Stage.TEXT_INPUTS} & begun.keys()
    for stage in prompts:
        assert planned[stage] / 2 < begun[stage] == noted.done[stage] <= planned[stage]
    for stage in begun.keys() - prompts:
        assert begun[stage] == planned[stage] == noted.done[stage], stage


def test_measuring_takes_as_long_as_it_says_with_a_merge_and_without(
    demo: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    for merged in (None, str(demo / "loras" / "penguin.safetensors")):
        noted = Noted()
        measure_loras(request(demo, "fox-face", "pizza"), host, merged, noted)
        assert [stage for stage, _ in noted.begun] == [Stage.READING, Stage.TESTING, Stage.MEASURING]
        assert dict(noted.begun) == noted.done


def test_the_three_sets_of_points_share_neither_words_nor_noise(demo: Path) -> None:
    asked = request(demo, "fox-face", "pizza", seed=3)
    plans = [paths(asked) for paths in (learning_paths, stopping_paths, measuring_paths)]
    assert [plan.part for plan in plans] == [Part.LEARN, Part.STOP, Part.MEASURE]
    # noise is drawn from the plan's seed on, a thousand seeds for each teacher
    assert all(b.seed - a.seed >= 1000 * 500 for a, b in itertools.pairwise(plans))
    assert [plan.seed % 1_000_000 for plan in plans] == [3, 3, 3]
    assert plans[1].partners is False, "what decides when to stop is asked of nobody else"


def test_a_step_takes_more_where_a_style_is_asked_with_its_words_and_without(demo: Path) -> None:
    asked = request(demo, "fox-face", "pizza", "style-clay", options={"effort": "balanced"})
    procedure, teachers = Procedure.of(asked), make_teachers(asked.concepts, asked.prompts)
    options, plan = replace(procedure.refinement(3), batch_size=7), stopping_paths(asked)

    def refining(of: Sequence[Teacher]) -> float:
        stages = plan_stages(asked, procedure.method, options, of, layers=(1, 1))
        return next(item.amount for item in stages if item.stage is Stage.REFINING)

    silent = [replace(teacher, by_words=False) for teacher in teachers]
    looked = 7 * sum(plan.of(teacher).points for teacher in teachers if teacher.by_words)
    more = options.steps * 2 * 7 + looked / 3
    assert refining(teachers) - refining(silent) == pytest.approx(more), (
        "seven points, twice; and in seven looks each once more"
    )


@pytest.mark.parametrize("most", [2, 5, 16, 40, 1000])
def test_a_plan_has_room_in_memory(demo: Path, most: int) -> None:
    recorded = request(demo, "fox-face", recording=RecordingOptions())
    for paths in (learning_paths, stopping_paths, measuring_paths):
        plan = paths(recorded)
        assert paths(recorded, None) == plan
        assert paths(recorded, most) == plan.within(most)
        assert paths(recorded, most).points <= most
        assert (paths(recorded, most) == plan) == (plan.points <= most)
