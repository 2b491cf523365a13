"""How a job's result comes about: the merge and its pictures, under the job's own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modules import errors, shared

from ...errors import Interrupted, LoraclrError
from ...files import WorkFolder
from ...hosts import running
from ...merge import Finished, Followed, Start, merge_loras, refine_further, start_from
from ...model import Host
from ...output import Merge, Pictures, PreviewOptions, draw_pictures, file_size
from ...progress import PlannedStage, Stage
from . import estimate, pace, settings, wording, working
from .clock import TimedProgress

if TYPE_CHECKING:
    from .job import Job


@dataclass
class Result:
    """A finished merge, with all that writing its file needs; the model is not among it.

    Attributes:
        merge: on the CPU, without the inputs' tensors
        pictures: to judge it by, and for its card; or None
        size: of the file in bytes
        followed: what was recorded, to refine it further without recording again; None where nobody can, or where newer results
            took the room. What is kept on the disk is not held there too
    """

    merge: Merge
    pictures: Pictures | None
    size: int
    followed: Followed | None = None


class JobProgress(TimedProgress):
    """The progress of a job, which is stopped by its own interrupt, and whose picture is drawn in it after the merge."""

    def __init__(
        self, job: Job, key: pace.Key, host: Host, is_to_stop: Callable[[], bool], start: Start | None
    ) -> None:
        """
        Args:
            is_to_stop: whether somebody asked for that
            start: a finished merge that it goes on from
        """
        known = job.former.followed.examples if job.former and job.former.followed else ()
        expected = estimate.stages(job.request, host, draw=job.draw, start=start, known=known)
        super().__init__(expected, pace.seconds_per_unit(key), timed=pace.timed(key))
        self._job, self._is_to_stop = job, is_to_stop

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        super().plan([*stages, *estimate.drawing(self._job.request, draw=self._job.draw)])

    def interrupted(self) -> bool:
        return self._is_to_stop()


def make(job: Job, host: Host, is_to_stop: Callable[[], bool]) -> Result:
    """Merge and draw; the job's progress says how far it is.

    Raises:
        LoraclrError: a person can mend it
        Interrupted: the user asked to stop
    """
    key = pace.key_of(job.request, host)
    shared.state.textinfo = "Looking how fast this computer is"
    pace.measure(host, key)
    start = _start(job, host)
    job.progress = JobProgress(job, key, host, is_to_stop, start)
    followed, (work, warned) = _followed(job), working.opened()
    merge = _merged(job, host, start, followed, work)
    if followed is not None and work is not None and not work.trouble:
        followed.examples.clear()
    pictures, warnings = _draw(job, merge, host) if job.draw else (None, ())
    job.progress.finish()
    try:
        pace.learn(key, done(job.progress, merge, drawn=pictures is not None), job.progress.seconds)
    except Exception:  # noqa: BLE001  (the merge is complete, whatever became of the next one's estimate)
        errors.report("LoRACLR: the pace of this merge could not be remembered", exc_info=True)
    told = tuple(wording.plain(warning, job.called) for warning in (*merge.report.warnings, *warned, *warnings))
    report = replace(merge.report, warnings=told)
    return Result(replace(merge, report=report).light(), pictures, file_size(merge), followed)


def _start(job: Job, host: Host) -> Start | None:
    """The finished merge that a job goes on from, a result's or a file's; None where it merges afresh."""
    if job.former is not None:
        labels = frozenset(concept.label for concept in job.request.concepts)
        return Start((Finished(job.former.merge.factors, labels),), job.steps)
    return start_from([job.adds_to.path], host) if job.adds_to else None


def _followed(job: Job) -> Followed | None:
    """Where what is recorded is held: of merges of the tab alone, as nobody else can refine them further."""
    if job.former is not None and job.former.followed is not None:
        return job.former.followed
    return None if job.form is None or job.keeps_as else Followed()


def _merged(job: Job, host: Host, start: Start | None, followed: Followed | None, work: WorkFolder | None) -> Merge:
    """Afresh, or from a finished merge on."""
    if job.former is None:
        return merge_loras(job.request, host, job.progress, start=start, work=work, followed=followed)
    former = replace(job.former.merge, request=job.request)
    return refine_further(former, host, job.progress, steps=job.steps, work=work, followed=followed)


def done(progress: TimedProgress, merge: Merge, *, drawn: bool) -> list[PlannedStage]:
    """What was done of what was planned: the refinement may have ended early, some was found of a merge before, and from a
    picture that was cut short there is nothing to learn."""
    stages = []
    for item in progress.planned:
        if item.stage is not Stage.DRAWING or drawn:
            whole = merge.report.refinement["steps"] if item.stage is Stage.REFINING else item.units
            own = max(0, whole - progress.units_found.get(item.stage, 0))
            stages.append(replace(item, units=own, amount=item.amount * own / max(1, item.units)))
    return stages


def _draw(job: Job, merge: Merge, host: Host) -> tuple[Pictures | None, tuple[str, ...]]:
    """The pictures, or why there is none: a merge that is finished is not thrown away for it."""
    drawing = PreviewOptions(guidance=job.request.recording.guidance, font=running.caption_font())
    try:
        return draw_pictures(merge, host, drawing, job.progress), ()
    except Interrupted:
        return None, ("The picture was interrupted; the merge is complete.",)
    except LoraclrError as error:
        return None, (f"There is no picture ({error}); the merge is complete.",)
    except Exception as error:  # noqa: BLE001  (as above, whatever it was)
        errors.report("LoRACLR: the picture could not be drawn", exc_info=True)
        return None, (f"There is no picture ({type(error).__name__}: {error}); the merge is complete.",)


def let_go_of_recordings(held: Sequence[Result]) -> None:
    """Hold the latest result's recording, and those before while all fit into the memory budget: without its own a result is
    refined further all the same, and recorded again for that.

    Args:
        held: the oldest first
    """
    room, seen = int(settings.value("loraclr_memory")) << 20, set()
    for result in reversed(held):
        own = result.followed
        if own is None or id(own) in seen:  # what was refined further shares it with what it was refined from
            continue
        if seen and own.size > room:
            result.followed = None
            continue
        seen.add(id(own))
        room -= own.size
