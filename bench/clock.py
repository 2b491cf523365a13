"""The one clock: seconds and peak memory of every stage of a merge, on a card or a CPU.

Processor time is what the work takes whatever else the machine does, and what tables show; wall time is what a person waits, and
the only one that means something on a card.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from lib_loraclr.progress import PlannedStage, Progress, Stage, Work

Result = TypeVar("Result")


@dataclass(frozen=True)
class Span:
    """What something took.

    Attributes:
        wall, processor: seconds
        peak: MB at most beyond what was taken when the clock began
    """

    wall: float = 0.0
    processor: float = 0.0
    peak: float = 0.0

    def __add__(self, other: Span) -> Span:
        """One after the other."""
        return Span(self.wall + other.wall, self.processor + other.processor, max(self.peak, other.peak))


class Clock(Progress):
    """Times the stages of a merge.

    Attributes:
        stage: the one that runs
        spans: of those that have ended; a stage that comes twice is counted together
    """

    def __init__(self, device: str = "cpu", *, loud: bool = False) -> None:
        """
        Args:
            loud: print each stage as it ends
        """
        self.stage: Stage | None = None
        self.spans: dict[Stage, Span] = {}
        self._cuda, self._loud, self._planned = device == "cuda", loud, []
        self._since = time.perf_counter(), time.process_time()
        self._baseline, self._peak = self._memory(), 0.0

    def _memory(self) -> float:
        return torch.cuda.memory_allocated() / 2**20 if self._cuda else resident_mb()

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        self._planned = list(stages)

    def start(self, stage: Stage, total: int) -> None:
        self.finish()
        self.stage, self._peak = stage, 0.0
        self._since = time.perf_counter(), time.process_time()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def advance(self, units: int = 1, note: str = "") -> None:
        super().advance(units, note)
        self.look()

    def look(self) -> None:
        """Look at a CPU's memory; with every unit of progress, and more often inside `watching`."""
        if self.stage and not self._cuda:
            self._peak = max(self._peak, self._memory() - self._baseline)

    def finish(self) -> None:
        """The stage that runs has ended."""
        if self.stage is None:
            return
        if self._cuda:
            torch.cuda.synchronize()
            self._peak = torch.cuda.max_memory_allocated() / 2**20 - self._baseline
        wall, processor = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        span = Span(wall, processor, self._peak)
        self.spans[self.stage] = self.spans.get(self.stage, Span()) + span
        if self._loud:
            print(f"  {self.stage.value:32} {processor:7.1f} s {self._peak:7.0f} MB", flush=True)
        self.stage = None

    def total(self, stages: Sequence[Stage] = tuple(Stage)) -> Span:
        """Of these stages together."""
        return sum((self.spans[stage] for stage in stages if stage in self.spans), Span())

    def seconds_per_unit(self) -> dict[Work, float]:
        """Kind of work -> wall seconds of one unit of it, by what was planned and what it took."""
        found = {}
        for kind in Work:
            own = [item for item in self._planned if item.work is kind and item.stage in self.spans]
            amount = sum(item.amount for item in own)
            if amount:
                found[kind] = sum(self.spans[item.stage].wall for item in own) / amount
        return found


def resident_mb() -> float:
    """Of this process; Linux only, 0 elsewhere."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 / 2**20 if statm.is_file() else 0.0


@contextmanager
def watching(clock: Clock) -> Iterator[None]:
    """Look at the memory every 5 ms, whatever the progress."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(0.005):
            clock.look()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def timed(work: Callable[[], Result]) -> tuple[Result, Span]:
    """What a piece of work gives, and what it took; its memory is not looked at."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, Span(time.perf_counter() - wall, time.process_time() - processor)
