"""What a merge says it will do is what it does: stage for stage, and unit for unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.host import Host
from lib_loraclr.progress import PlannedStage, Progress, Stage
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


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (("fox-face", "pizza"), {"method": "average", "options": {}}),
        (("fox-face", "style-clay"), {}),
        (("fox-face", "pizza", "penguin"), {"options": {"effort": "balanced", "steps": 3, "batch_size": 2}}),
    ],
    ids=["nothing recorded", "layer by layer", "refined"],
)
def test_a_merge_follows_its_plan(
    demo: Path, host: Host, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], changes: dict
) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    noted = Noted()
    merge_loras(request(demo, *names, **changes), host, noted)
    assert [stage for stage, _ in noted.begun] == [stage for stage, _ in noted.planned]
    begun, planned = dict(noted.begun), dict(noted.planned)
    # of the layers it says only how many there are, not which of them are the text encoder's
    layers = {Stage.TEXT_LAYERS, Stage.UNET_LAYERS}
    assert {planned[stage] for stage in layers} == {sum(begun[stage] for stage in layers)}
    # how many evaluations find the nearest concept is only estimated
    exact = begun.keys() - layers - {Stage.COMPARING}
    for stage in exact:
        assert begun[stage] == planned[stage] == noted.done[stage], stage
