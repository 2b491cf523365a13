"""Progress of one of several processes: only the first one tells, and all hear whether another has failed."""

from __future__ import annotations

from collections.abc import Sequence

from ..model import Processes
from ..progress import PlannedStage, Progress, Stage


def watching(progress: Progress, processes: Processes) -> Progress:
    """Progress that looks after the other processes, where there are some."""
    if processes.count == 1:
        return progress
    return _Watching(progress if processes.rank == 0 else Progress(), processes)


class _Watching(Progress):
    def __init__(self, told: Progress, processes: Processes) -> None:
        self._told, self._processes = told, processes

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        self._told.plan(stages)

    def start(self, stage: Stage, total: int) -> None:
        self._told.start(stage, total)

    def advance(self, units: int = 1, note: str = "") -> None:
        self._processes.check()
        self._told.advance(units, note)

    def found(self, units: int, note: str = "") -> None:
        self._processes.check()
        self._told.found(units, note)

    def log(self, line: str) -> None:
        self._told.log(line)

    def interrupted(self) -> bool:
        return self._told.interrupted()
