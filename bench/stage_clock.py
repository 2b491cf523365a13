"""Seconds and peak memory of every stage of a merge, on a card or a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from lib_loraclr.progress import PlannedStage, Progress, Stage, Work

from .shapes import resident_mb


class StageClock(Progress):
    """Wall time of each stage, and the most MB in it beyond what was taken when the merge began.

    Attributes:
        stage: the one that runs
        seconds, peaks: by stage; a CPU's memory is looked at with every unit of progress
    """

    def __init__(self, device: str) -> None:
        self.stage: Stage | None = None
        self.seconds: dict[Stage, float] = {}
        self.peaks: dict[Stage, float] = {}
        self._cuda, self._since, self._planned = device == "cuda", time.perf_counter(), []
        self._baseline = self._now()

    def _now(self) -> float:
        return torch.cuda.memory_allocated() / 2**20 if self._cuda else resident_mb()

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        self._planned = list(stages)

    def start(self, stage: Stage, total: int) -> None:
        self.finish()
        self.stage, self._since = stage, time.perf_counter()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def advance(self, units: int = 1, note: str = "") -> None:
        super().advance(units, note)
        if self.stage and not self._cuda:
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0.0), self._now() - self._baseline)

    def finish(self) -> None:
        """The stage that runs has ended."""
        if self.stage is None:
            return
        if self._cuda:
            torch.cuda.synchronize()
            self.peaks[self.stage] = torch.cuda.max_memory_allocated() / 2**20 - self._baseline
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + time.perf_counter() - self._since
        self.stage = None

    def pace(self) -> dict[str, float]:
        """Kind of work -> seconds for one unit of it, by what was planned and what it took."""
        found = {}
        for kind in Work:
            own = [item for item in self._planned if item.work is kind and item.stage in self.seconds]
            amount = sum(item.amount for item in own)
            if amount:
                found[kind.value] = sum(self.seconds[item.stage] for item in own) / amount
        return found
