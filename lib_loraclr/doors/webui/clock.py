"""How far a merge is and how long it has to go: one clock, set right by what is seen while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ...errors import Interrupted
from ...hosts import running
from ...progress import PlannedStage, Stage, Work
from .notes import duration

#: seconds' worth of expectation that stand beside what is seen, so that the first moments of a stage prove nothing
_PRIOR = 1.0
#: seconds after which something is said of the time that is left where no merge was ever timed
_SETTLED = 3.0
#: parts of the bar; the WebUI computes with sampling steps
_PARTS = 1000
#: stages -> what is counted in them; in the others the name of a concept says more than a number
_COUNTED = {Stage.TEXT_LAYERS: "layer", Stage.UNET_LAYERS: "layer", Stage.REFINING: "step"}


class Clock:
    """What is left of planned work, at the pace that was expected and then at that which is seen.

    What is not seen yet goes by its own expectation, corrected as evaluations of the model are: forward and back goes through
    the same model. Work on layers does not. A unit that is under way is believed to go on as expected until it should be over: a
    step of the refinement may take minutes, before which nothing has been done and nothing is known.
    """

    def __init__(self, planned: Iterable[PlannedStage], units: Mapping[Work, float]) -> None:
        """
        Args:
            planned: the stages in their order
            units: kind of work -> seconds expected for one unit of it
        """
        self._units = units
        self.taken: dict[Stage, float] = {}
        self._stage: Stage | None = None
        self._since = self._share = self._moved = 0.0
        self._before: dict[Work, tuple[float, float]] = {}
        self._later: tuple[PlannedStage, ...] = ()
        self.plan(planned)

    def plan(self, planned: Iterable[PlannedStage]) -> None:
        """What is to be done, as it is known now; what was done stays done."""
        self._planned = {item.stage: item for item in planned}

    def begin(self, planned: Iterable[PlannedStage], later: Iterable[PlannedStage], now: float) -> None:
        """Another merge begins, and what was seen of those before it is believed of it too.

        Args:
            planned: its stages
            later: those of the merges after it
        """
        self._before = self._seen(now)
        self.taken, self._stage, self._later = {}, None, tuple(later)
        self.plan(planned)

    def start(self, stage: Stage, now: float) -> None:
        self.finish(now)
        self._stage, self._since, self._share, self._moved = stage, now, 0.0, now

    def advance(self, share: float, now: float) -> None:
        """How much of the stage is done, 0..1."""
        if share != self._share:
            self._share, self._moved = share, now

    def found(self, units: int) -> None:
        """So many units of the stage that runs are done, and took no time."""
        item = self._planned.get(self._stage)
        if item is not None and item.units:
            left = max(0, item.units - units)
            self._planned[item.stage] = replace(item, units=left, amount=item.amount * left / item.units)

    def finish(self, now: float) -> None:
        """The stage has ended."""
        if self._stage:
            self.taken[self._stage] = now - self._since
        self._stage = None

    def remaining(self, now: float) -> float:
        """Seconds that are left."""
        seen = self._seen(now)
        left = sum(self._expected(item) * _correction(item.work, seen) for item in self._later)
        for stage, item in self._planned.items():
            if stage not in self.taken:
                expected, pace = self._expected(item), _correction(item.work, seen)
                done = self._done(item, now) if stage is self._stage else 0.0
                own = _ratio(now - self._since, done, pace) if stage is self._stage else pace
                left += (expected - done) * own
        return left

    def _expected(self, item: PlannedStage) -> float:
        return item.amount * self._units[item.work]

    def _done(self, item: PlannedStage, now: float) -> float:
        """Seconds that were expected for what is done of the stage that runs, with the unit under way."""
        expected = self._expected(item)
        under_way = min(expected / max(1, item.units), now - self._moved)
        return min(expected, expected * self._share + under_way)

    def _seen(self, now: float) -> dict[Work, tuple[float, float]]:
        """Kind of work -> seconds taken, and seconds that were expected for as much."""
        seen = dict(self._before)
        for stage, item in self._planned.items():
            if stage in self.taken:
                _add(seen, item.work, self.taken[stage], self._expected(item))
            elif stage is self._stage:
                _add(seen, item.work, now - self._since, self._done(item, now))
        return seen


def _add(seen: dict[Work, tuple[float, float]], work: Work, taken: float, expected: float) -> None:
    before = seen.get(work, (0.0, 0.0))
    seen[work] = before[0] + taken, before[1] + expected


def _correction(work: Work, seen: Mapping[Work, tuple[float, float]]) -> float:
    before = _correction(Work.EVALUATION, seen) if work is Work.BACKWARD else 1.0
    return _ratio(*seen.get(work, (0.0, 0.0)), before)


def _ratio(taken: float, expected: float, before: float = 1.0) -> float:
    """How many times as long as expected it takes.

    Args:
        before: how many times was believed before anything was seen
    """
    return (taken + _PRIOR * before) / (expected + _PRIOR)


class TimedProgress(running.StateProgress):
    """The WebUI's bar, by a merge's clock: the bar is the share of the time that has passed, which the WebUI's own reckoning of
    what is left follows from.

    Attributes:
        units_found: stage -> how many of its units were found in the work folder
    """

    def __init__(self, planned: Sequence[PlannedStage], units: Mapping[Work, float], *, timed: bool) -> None:
        """
        Args:
            planned: what the merge will do, as far as it is known
            units: kind of work -> seconds expected for one unit of it
            timed: whether an earlier merge has shown what to expect
        """
        self.planned, self.clock = planned, Clock(planned, units)
        self._timed, self._most, self._born = timed, 0.0, time.monotonic()
        self.units_found: dict[Stage, int] = {}
        super().__init__()

    @property
    def seconds(self) -> Mapping[Stage, float]:
        """What each stage took, for later estimates."""
        return self.clock.taken

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """The inputs have been read, and the merge itself says what it will do."""
        self.planned = stages
        self.clock.plan(stages)

    def start(self, stage: Stage, total: int) -> None:
        self.clock.start(stage, time.monotonic())
        super().start(stage, total)
        if self.interrupted():
            raise Interrupted

    def found(self, units: int, note: str = "") -> None:
        self.units_found[self._stage] = self.units_found.get(self._stage, 0) + units
        self.clock.found(units)
        super().found(units, note)

    def finish(self) -> None:
        self.clock.finish(time.monotonic())

    def fraction(self) -> float:
        """How much of the bar is full, 0..1; it never shrinks, whatever the clock has learnt."""
        now = time.monotonic()
        passed = now - self._born
        left = self.clock.remaining(now)
        self._most = max(self._most, min(1.0, passed / (passed + left)) if passed + left else 0.0)
        return self._most

    def _show(self) -> None:
        found = self.units_found.get(self._stage, 0)
        own = max(1, self._total - found)
        self.clock.advance(min(1.0, (self._done - found) / own) if self._total else 0.0, time.monotonic())
        self._state.sampling_step = int(self.fraction() * _PARTS)
        kept = "goes on from before" if self.units_found else ""
        self._state.textinfo = " · ".join(part for part in (self._doing(), kept, self._left()) if part)

    def _doing(self) -> str:
        """What is being done, and of what."""
        if self._stage is None:
            return ""
        doing = self._stage.value[0].upper() + self._stage.value[1:]
        if self._stage in _COUNTED and self._total:
            number = min(self._done + 1, self._total)
            return f"{doing}: {_COUNTED[self._stage]} {number} of {self._total}"
        return f"{doing}: {self._note}" if self._note else doing

    def _left(self) -> str:
        now = time.monotonic()
        if not self._timed and now - self._born < _SETTLED:
            return ""
        return f"{duration(self.clock.remaining(now))} left"
