"""Merges in the WebUI: one at a time, the result held until it is kept or discarded."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modules import errors, progress, shared

from ...errors import Interrupted, LoraclrError
from ...hosts import a1111
from ...merge import merge_loras
from ...model import Host, is_out_of_memory
from ...output import Merge, Pictures, PreviewOptions, draw_pictures, file_size, save_merge
from ...progress import PlannedStage, Stage
from ...request import MergeRequest, output_path
from . import estimate, pace
from .clock import TimedProgress

#: states a job does not leave any more; "finished" waits for keep or discard
OVER = ("finished", "failed", "interrupted", "kept", "discarded")
#: jobs that are remembered, and results among them that are held in memory
_REMEMBERED, _HELD = 16, 2
_NO_MEMORY = (
    "The graphics memory ran out, and nothing was kept: choose effort Layers, merge fewer LoRAs at a time, or record smaller "
    "pictures (width and height under Advanced)."
)


@dataclass
class Result:
    """A finished merge, with all that writing its file needs; the model is not among it.

    Attributes:
        merge: on the CPU, without the inputs' tensors
        pictures: to judge it by, and for its card; or None
        size: of the file in bytes
    """

    merge: Merge
    pictures: Pictures | None
    size: int


@dataclass
class Job:
    """A merge that somebody asked for, from the queue to what became of its result.

    Attributes:
        request: what was asked; `lora` of each concept is a path
        names: the LoRAs as the WebUI names them
        draw: whether a picture is drawn
        task: of the tab, that the WebUI shows the progress of; empty for HTTP
        id: what it is asked for by
        state: queued, running, or one of `OVER`
        error: what went wrong, for the person who asked
        result: held from "finished" until it is kept or discarded
        kept: the new LoRA or checkpoint
        form: what stood in the tab when it was asked for there, as that hands it over; None for HTTP
    """

    request: MergeRequest
    names: tuple[str, ...]
    draw: bool = True
    task: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "queued"
    error: str = ""
    result: Result | None = None
    kept: a1111.InstalledLora | a1111.InstalledCheckpoint | None = None
    stop: bool = False
    progress: _Progress | None = None
    form: Any = None

    def fraction(self) -> float:
        """How much of it is done, 0..1."""
        if self.state in ("finished", "kept", "discarded"):
            return 1.0
        return self.progress.fraction() if self.progress else 0.0

    def text(self) -> str:
        """The line under the bar."""
        return shared.state.textinfo or "" if self.state == "running" else ""


class _Progress(TimedProgress):
    """The progress of a job, whose own interrupt it hears, and whose picture is drawn in it after the merge."""

    def __init__(self, job: Job, key: pace.Key, host: Host) -> None:
        expected = estimate.stages(job.request, host, draw=job.draw)
        super().__init__(expected, pace.seconds_per_unit(key), timed=pace.timed(key))
        self._job = job

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        super().plan([*stages, *estimate.drawing(self._job.request, draw=self._job.draw)])

    def interrupted(self) -> bool:
        return self._job.stop or super().interrupted()


_jobs: dict[str, Job] = {}
_guard, _keeping = threading.Lock(), threading.Lock()
#: tasks of the tab that were stopped, the latest ones
_stopped: list[str] = []
#: the merge that was stopped when the scripts were unloaded
_unloaded: list[Job] = []


def find(job_id: str) -> Job | None:
    return _jobs.get(job_id)


def waiting() -> Job | None:
    """The latest job whose result is neither kept nor discarded."""
    return next((job for job in reversed(list(_jobs.values())) if job.state == "finished"), None)


def take_unloaded() -> Job | None:
    """The merge that Reload UI stopped, once: who has been told of it wants to see other things next."""
    return _unloaded.pop() if _unloaded else None


def of_task(task: str) -> Job | None:
    return next((job for job in _jobs.values() if task and job.task == task), None)


def run(job: Job, *, lock_held: bool) -> None:
    """Merge, and hold the result.

    Raises:
        LoraclrError: a person can mend it; `job.error` has the text
        Interrupted: the user asked to stop
    """
    _remember(job)
    try:
        with a1111.session(lock_held=lock_held) as host:
            if job.stop:  # while it waited for the queue
                raise Interrupted
            job.state = "running"
            job.result = _merge(job, host)
        job.state = "finished"
    except Interrupted:
        job.state = "interrupted"
        raise
    except LoraclrError as error:
        job.state, job.error = "failed", shown(error, job)
        raise LoraclrError(job.error) from error
    except Exception as error:
        job.state, job.error = "failed", f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            job.error = _NO_MEMORY
            raise LoraclrError(job.error) from error
        raise
    finally:
        _let_go()


def start(job: Job) -> None:
    """Merge in the background.

    Raises:
        LoraclrError: another one is under way
    """
    with _guard:
        busy = next((other for other in _jobs.values() if other.state in ("queued", "running")), None)
        if busy:
            raise LoraclrError(f"A merge is under way (job {busy.id}): wait for it, or interrupt it.")
        _remember(job)
    threading.Thread(target=_run_in_background, args=(job,), name=f"loraclr {job.id}", daemon=True).start()


def _run_in_background(job: Job) -> None:
    try:
        run(job, lock_held=False)
    except (Interrupted, LoraclrError):
        pass  # the job says so
    except Exception:  # noqa: BLE001  (nobody waits for this thread; the log and the job have it)
        errors.report("LoRACLR: the merge failed", exc_info=True)


def interrupt_task(task: str) -> None:
    """Stop the merge that the tab began under this task: now if it runs, and before it begins if it waits in the queue.

    The WebUI's own interrupt would stop whatever picture is being made meanwhile.
    """
    _stopped.append(task)
    del _stopped[:-_REMEMBERED]
    if progress.current_task == task:
        shared.state.interrupt()


def is_stopped(task: str) -> bool:
    """Whether it was stopped while it waited."""
    return bool(task) and task in _stopped


def interrupt(job: Job) -> None:
    """Stop after the current evaluation of the model; a queued job does not begin, and makes way for another at once."""
    job.stop = True
    if job.state == "queued":
        job.state = "interrupted"


def keep(
    job: Job, name: str, *, overwrite: bool = False, with_sheet: bool = False
) -> a1111.InstalledLora | a1111.InstalledCheckpoint:
    """Write the file and make the WebUI list it.

    Args:
        name: inside the LoRA folder, sub-folders separated by "/"; a checkpoint goes into the folder of checkpoints, under
            the next free name if this one is taken
        overwrite: replace a LoRA of that name; a checkpoint is never replaced
        with_sheet: write the picture to judge it by as well, as `NAME.report.png`

    Raises:
        LoraclrError: nothing to keep, a name that may not be or is taken, or it cannot be written
    """
    with _keeping:  # a second click waits, and finds nothing left to keep
        return _keep(job, name, overwrite=overwrite, with_sheet=with_sheet)


def _keep(job: Job, name: str, *, overwrite: bool, with_sheet: bool) -> a1111.InstalledLora | a1111.InstalledCheckpoint:
    if job.result is None:
        raise LoraclrError(f"There is nothing to keep: the merge is {job.state}.")
    held, wanted = job.result, name.strip().replace("\\", "/")
    card, sheet = (held.pictures.card, held.pictures.sheet) if held.pictures else (None, None)
    drawn = {"preview": card, "sheet": sheet if with_sheet else None}
    if job.request.save_as == "checkpoint":
        path = output_path(a1111.checkpoint_dir(), a1111.free_checkpoint_name(wanted))
        save_merge(held.merge, path, **drawn)
        job.kept = a1111.announce_checkpoint(path)
    else:
        path = _lora_path(wanted, overwrite=overwrite)
        save_merge(held.merge, path, **drawn, overwrite=overwrite)
        # pictures of what was replaced show another merge
        for picture in a1111.previews(path):
            if card is None or picture != path.with_suffix(".png"):
                picture.unlink(missing_ok=True)
        if drawn["sheet"] is None:
            path.with_suffix(".report.png").unlink(missing_ok=True)
        job.kept = a1111.announce(path)
    job.state, job.result = "kept", None
    return job.kept


def _lora_path(name: str, *, overwrite: bool) -> Path:
    path = output_path(a1111.lora_dir(), name)
    taken = {lora.name.lower(): lora for lora in a1111.installed_loras()}.get(path.stem.lower())
    if taken and taken.path.resolve() != path.resolve():
        raise LoraclrError(
            f"{path.stem} is the name of another LoRA, and prompts tell LoRAs apart by name only: rename."
        )
    if not overwrite and any(
        path.with_suffix(suffix).exists() for suffix in (".safetensors", ".json", ".png", ".report.png")
    ):
        raise NameTaken(f"{name} exists already: choose another name, or replace it.")
    return path


class NameTaken(LoraclrError):
    """The file exists; asking again with `overwrite` replaces it."""


def discard(job: Job) -> None:
    """Let go of the result; nothing was written.

    Raises:
        LoraclrError: there is no result
    """
    if job.result is None:
        raise LoraclrError(f"There is nothing to discard: the merge is {job.state}.")
    job.state, job.result = "discarded", None


def unload() -> None:
    """Stop what runs; the scripts are unloaded. Results wait on: the tab that is made anew shows them."""
    for job in list(_jobs.values()):
        if job.state != "finished":
            if job.state not in OVER:
                _unloaded[:] = [job]
            job.stop = True
            del _jobs[job.id]
    _stopped.clear()


def shown(error: Exception, job: Job) -> str:
    """The error's text with the LoRAs' names in place of paths."""
    text = str(error)
    for concept, name in zip(job.request.concepts, job.names, strict=True):
        text = text.replace(concept.lora, name)
    return text


def _merge(job: Job, host: Host) -> Result:
    key = pace.key_of(job.request, host)
    shared.state.textinfo = "Looking how fast this computer is"
    pace.measure(host, key)
    job.progress = _Progress(job, key, host)
    merge = merge_loras(job.request, host, job.progress)
    pictures, warnings = _draw(job, merge, host) if job.draw else (None, ())
    job.progress.finish()
    try:
        pace.learn(key, _done(job.progress.planned, merge, drawn=pictures is not None), job.progress.seconds)
    except Exception:  # noqa: BLE001  (the merge is complete, whatever became of the next one's estimate)
        errors.report("LoRACLR: the pace of this merge could not be remembered", exc_info=True)
    report = replace(merge.report, warnings=(*merge.report.warnings, *warnings))
    return Result(replace(merge, report=report).light(), pictures, file_size(merge))


def _done(planned: Sequence[PlannedStage], merge: Merge, *, drawn: bool) -> list[PlannedStage]:
    """What was done of what was planned: the refinement may have ended early, and from a picture that was cut short there is
    nothing to learn."""
    done = []
    for item in planned:
        if item.stage is Stage.REFINING:
            steps = merge.report.refinement["steps"]
            done.append(replace(item, units=steps, amount=item.amount * steps / item.units))
        elif item.stage is not Stage.DRAWING or drawn:
            done.append(item)
    return done


def _draw(job: Job, merge: Merge, host: Host) -> tuple[Pictures | None, tuple[str, ...]]:
    """The pictures, or why there is none: a merge that is finished is not thrown away for it."""
    drawing = PreviewOptions(guidance=job.request.recording.guidance, font=a1111.caption_font())
    try:
        return draw_pictures(merge, host, drawing, job.progress), ()
    except Interrupted:
        return None, ("The picture was interrupted; the merge is complete.",)
    except LoraclrError as error:
        return None, (f"There is no picture ({error}); the merge is complete.",)
    except Exception as error:  # noqa: BLE001  (as above, whatever it was)
        errors.report("LoRACLR: the picture could not be drawn", exc_info=True)
        return None, (f"There is no picture ({type(error).__name__}: {error}); the merge is complete.",)


def _remember(job: Job) -> None:
    _unloaded.clear()
    _jobs[job.id] = job


def _let_go() -> None:
    """Forget the oldest jobs, and the oldest results that nobody kept."""
    held = [job for job in _jobs.values() if job.state == "finished"]
    for job in held[:-_HELD]:
        discard(job)
    over = [job.id for job in _jobs.values() if job.state in OVER and job.state != "finished"]
    for job_id in over[: max(0, len(_jobs) - _REMEMBERED)]:
        del _jobs[job_id]
