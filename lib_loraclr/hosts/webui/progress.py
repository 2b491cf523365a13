"""A merge in the WebUI's own progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ...progress import Progress, Stage
from . import modules

#: parts of the bar; the WebUI computes with sampling steps
_PARTS = 1000
#: seconds that a stage must have run before its pace says anything
_SETTLED = 2.0


class StateProgress(Progress):
    """Drives `shared.state`, and listens to its Interrupt button.

    The core begins one stage after the other, so the bar is told how the whole divides: `shares`. A stage that is not in there
    fills the bar by itself, and the text says which one it is.
    """

    def __init__(self, shares: Mapping[Stage, float] | None = None) -> None:
        """
        Args:
            shares: stage -> seconds it is expected to take, in the order of the stages
        """
        self._state = modules.module("shared").state
        self._finished: list[Stage] = []
        self._stage: Stage | None = None
        self._total, self._done, self._note, self._begun = 0, 0, "", time.monotonic()
        self.divide(shares or {})
        self.lines: list[str] = []

    def divide(self, shares: Mapping[Stage, float]) -> None:
        """How the whole divides, as it is known now."""
        self._shares = shares
        self._whole = sum(shares.values())

    def start(self, stage: Stage, total: int) -> None:
        if self._stage:
            self._finished.append(self._stage)
        self._stage, self._total, self._done, self._note, self._begun = stage, total, 0, "", time.monotonic()
        self._state.job_count, self._state.job_no, self._state.sampling_steps = 1, 0, _PARTS
        self._show()

    def advance(self, units: int = 1, note: str = "") -> None:
        self._done += units
        self._note = note or self._note
        self._show()
        super().advance(units, note)

    def log(self, line: str) -> None:
        self.lines.append(line)

    def interrupted(self) -> bool:
        """Interrupt and the setting that makes it wait for the end of a picture count alike: a merge has no pictures."""
        return bool(self._state.interrupted or self._state.stopping_generation)

    def fraction(self) -> float:
        """How much of the bar is full, 0..1."""
        within = min(1.0, self._done / self._total) if self._total else 0.0
        if self._stage not in self._shares or not self._whole:
            return within
        before = sum(seconds for stage, seconds in self._shares.items() if stage in self._finished)
        return min(1.0, (before + within * self._shares[self._stage]) / self._whole)

    def _show(self) -> None:
        self._state.sampling_step = int(self.fraction() * _PARTS)
        stage = self._stage.value if self._stage else ""
        count = f" {min(self._done, self._total)}/{self._total}" if self._total else ""
        self._state.textinfo = " · ".join(part for part in (stage + count, self._note, self._remaining()) if part)

    def _remaining(self) -> str:
        """How long this stage has still to go, once its pace is known."""
        elapsed = time.monotonic() - self._begun
        if elapsed < _SETTLED or not self._done or self._done >= self._total:
            return ""
        seconds = round(elapsed / self._done * (self._total - self._done))
        return f"{seconds // 60}:{seconds % 60:02d} left"
