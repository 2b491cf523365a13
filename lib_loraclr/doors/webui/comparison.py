"""Compare methods: a job that merges by one after the other, and shows what each keeps in place of a result.

No merge is held: what is chosen by it is merged afresh.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from modules import errors, shared

from ...errors import Interrupted, LoraclrError
from ...hosts import running
from ...merge import DRAWN, Outcome, Several, comparable, drawn, outcome_of, placed
from ...model import Host
from ...output import PreviewOptions
from ...progress import PlannedStage
from ...request import MergeRequest
from ...solving import EFFORT, find_method
from . import estimate, inline, pace, wording
from .clock import TimedProgress
from .start import is_closing

if TYPE_CHECKING:
    from collections.abc import Callable

    from .job import Job

#: pixels of a sheet in the page, at most: three of them are sent at a time
_WIDEST = 2048
#: method -> its options
Asked = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """What each method keeps.

    Attributes:
        labels: of the concepts, in the order of the figures
        outcomes: the best first
        sheets: JPEG files of the pictures of the best, by method
        failed: label of a method -> why it came to nothing
        warnings: what a person should know besides
    """

    labels: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    sheets: Mapping[str, bytes]
    failed: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def choices() -> list[str]:
    """The methods' labels, to choose from; the WebUI's own lists of several take no names behind them."""
    return [find_method(name).label for name in comparable()]


def asked_for(chosen: Sequence[str] | None, request: MergeRequest) -> Asked:
    """What will be compared: each method at its defaults, with the effort that is chosen where it has that.

    Args:
        chosen: labels; none for all
        request: of the form
    """
    methods = {method.label: method for method in map(find_method, comparable())}
    effort = request.options.get(EFFORT)
    return {
        methods[label].name: {EFFORT: effort} if effort in methods[label].efforts else {}
        for label in methods
        if not chosen or label in chosen
    }


class _Progress(TimedProgress):
    """One bar for all of them; its text says which is tried."""

    def __init__(
        self, rounds: Sequence[list[PlannedStage]], names: Sequence[str], key: pace.Key, stops: Callable[[], bool]
    ) -> None:
        """
        Args:
            rounds: what each method will do, and then the pictures of each of the best
            names: of the methods, as people read them
            stops: whether somebody asked for that
        """
        self._rounds, self._names, self._stops, self._round = rounds, names, stops, 0
        super().__init__(rounds[0], pace.seconds_per_unit(key), timed=pace.timed(key))
        self._go_on()

    def next(self) -> None:
        """Another round begins, whatever became of the one before."""
        self._round += 1
        self._go_on()

    def _go_on(self) -> None:
        own, *later = self._rounds[self._round :] or [[]]
        self.planned = own
        self.clock.begin(own, [item for items in later for item in items], time.monotonic())

    def _doing(self) -> str:
        of_methods = self._round < len(self._names)
        tried = f"{self._names[self._round]} ({self._round + 1} of {len(self._names)})" if of_methods else ""
        return " · ".join(part for part in (tried, super()._doing()) if part)

    def interrupted(self) -> bool:
        return self._stops()


def compare(job: Job, host: Host, is_to_stop: Callable[[], bool]) -> Comparison:
    """Merge by each method, measure, and draw the best; the job's progress says how far it is.

    Raises:
        LoraclrError: a person can mend it
        Interrupted: the user asked to stop, and nothing can be said yet
    """
    key = pace.key_of(job.request, host)
    shared.state.textinfo = "Looking how fast this computer is"
    pace.measure(host, key)
    rounds = estimate.comparison(job.request, job.compares, host, draw=job.draw)
    names = [find_method(method).label for method in job.compares]
    job.progress = progress = _Progress(rounds, names, key, is_to_stop)
    several = Several(job.request, host, progress)
    outcomes, failed, warnings = _outcomes(job, several, progress)
    sheets, more = _sheets(job, several, outcomes, progress) if job.draw and not warnings else ({}, ())
    labels = tuple(concept.label for concept in several.request.concepts)
    light = tuple(replace(own, made=replace(own.made, factors={})) for own in outcomes)
    return Comparison(labels, light, sheets, failed, (*warnings, *more))


def _outcomes(job: Job, several: Several, progress: _Progress) -> tuple[list[Outcome], dict[str, str], tuple[str, ...]]:
    """What the methods came to, the best first; label -> reason, of those that came to nothing; and what else is to be said.

    One that fails ends none of the others, and Interrupt none that are done: an hour may have gone into them.
    """
    outcomes: list[Outcome] = []
    failed: dict[str, str] = {}
    for number, (method, options) in enumerate(job.compares.items(), 1):
        label = find_method(method).label
        try:
            outcomes = placed(outcomes, outcome_of(several, method, options))
        except Interrupted:
            if not outcomes or is_closing():
                raise
            tried = f"{number - 1} of {len(job.compares)} methods were tried"
            return outcomes, failed, (f"It was interrupted at {label}: {tried}.",)
        except Exception as error:  # noqa: BLE001  (told in its place in the table; where there is none, raised)
            if not outcomes and number == len(job.compares):
                raise
            failed[label] = _reason(error, label, job)
        progress.next()
    return outcomes, failed, ()


def _reason(error: Exception, label: str, job: Job) -> str:
    """Why a method came to nothing, in the tab's words."""
    if isinstance(error, LoraclrError):
        return wording.plain(str(error), job.called)
    if wording.of_memory(error):
        return "The memory ran out."
    errors.report(f"LoRACLR: {label} failed", exc_info=True)
    return wording.plain(f"{type(error).__name__}: {error}. The WebUI's log has the details.", job.called)


def _sheets(
    job: Job, several: Several, outcomes: Sequence[Outcome], progress: _Progress
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The pictures of the best, and why there are not all: the figures are not thrown away for them."""
    options = PreviewOptions(guidance=job.request.recording.guidance, font=running.caption_font())
    sheets: dict[str, bytes] = {}
    try:
        for outcome in outcomes[:DRAWN]:
            sheet = drawn(several, outcome, options).sheet
            sheet.thumbnail((_WIDEST, sheet.height))
            sheets[outcome.made.method] = inline.jpeg(sheet)
            progress.next()
    except Interrupted:
        return sheets, ("The pictures were interrupted; the figures are complete.",)
    except Exception as error:  # noqa: BLE001  (whatever it was)
        return sheets, (f"There are not all pictures: {_reason(error, 'drawing', job)} The figures are complete.",)
    return sheets, ()
