"""Merges in the WebUI: one after the other, each somebody's, the result held until it is kept or discarded.

A job's state is changed under one lock, in a moment; what takes long (merging, writing) is done between two changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modules import errors

from ...errors import Interrupted, LoraclrError
from ...hosts import running
from . import comparison, history, keeping, naming, settings, wording
from .job import HOLDING, OVER, Job, owner_of
from .keeping import NameTaken
from .making import Result, let_go_of_recordings, make
from .start import is_closing

__all__ = [
    "HOLDING",
    "Job",
    "NameTaken",
    "OVER",
    "Result",
    "discard",
    "find",
    "interrupt",
    "interrupt_task",
    "is_stopped",
    "keep",
]
__all__ += ["of_task", "owner_of", "put_back", "run", "shown", "start", "unload", "waiting"]

#: jobs that are remembered
_REMEMBERED = 32
#: results that are held in memory, of one owner and in all
_HELD, _HELD_IN_ALL = 2, 8
#: merges that wait in the background at the same time, of one owner and in all
_WAITING, _WAITING_IN_ALL = 16, 64


_jobs: dict[str, Job] = {}
#: those that wait in the background, in their order, and the thread that takes one after the other while there are some: if each
#: waited for the WebUI's queue itself, a picture that is asked for meanwhile would come after all of them
_line: list[Job] = []
_worker: list[threading.Thread] = []
#: held while a job's state changes, and never while anything else is waited for
_guard = threading.Lock()
#: tasks of the tab that were stopped, the latest ones
_stopped: list[str] = []
#: the merge that was stopped when the scripts were unloaded
_unloaded: list[Job] = []


def find(job_id: str, owner: str | None = None) -> Job | None:
    """A job, if it is this owner's; None as owner stands for whoever knows its id, which nobody can guess."""
    job = _jobs.get(job_id)
    return job if job is not None and owner in (None, job.owner) else None


def waiting(owner: str = "") -> Job | None:
    """The latest job of an owner whose result is neither kept nor discarded, or whose comparison was not followed by another."""
    with _guard:
        return next((job for job in reversed(_jobs.values()) if job.state in HOLDING and job.owner == owner), None)


def take_unloaded() -> Job | None:
    """The merge that Reload UI stopped, once: who has been told of it wants to see other things next."""
    return _unloaded.pop() if _unloaded else None


def other_of(job: Job) -> Job | None:
    """The result that this one went on from, or that went on from it, while that is held."""
    other = find(job.other, job.owner)
    return other if other is not None and other.state == "finished" else None


def of_task(task: str) -> Job | None:
    with _guard:
        return next((job for job in _jobs.values() if task and job.task == task), None)


def of_owner(owner: str) -> list[Job]:
    """All that is remembered of an owner's, in the order in which it was asked for."""
    with _guard:
        return [job for job in _jobs.values() if job.owner == owner]


def run(job: Job, *, lock_held: bool) -> None:
    """Merge or compare, and hold what came of it.

    Raises:
        LoraclrError: a person can mend it; `job.error` has the text
        Interrupted: the user asked to stop
    """
    _remember(job)
    try:
        with running.session(lock_held=lock_held) as host:
            with _guard:
                if job.stop:  # while it waited for the queue
                    raise Interrupted
                job.state = "running"
            made = (comparison.compare if job.compares else make)(job, host, lambda: _is_to_stop(job))
        with _guard:
            if job.compares:
                job.state, job.comparison = "compared", made
            else:
                job.state, job.result = "finished", made
    except Interrupted:
        _end(job, "interrupted")
        raise
    except LoraclrError as error:
        _end(job, "failed", shown(error, job))
        raise LoraclrError(job.error) from error
    except BaseException as error:
        ran_out = wording.of_memory(error)
        _end(job, "failed", ran_out or wording.plain(f"{type(error).__name__}: {error}"))
        if ran_out:
            raise LoraclrError(ran_out) from error
        raise
    finally:
        _let_go()


def _is_to_stop(job: Job) -> bool:
    """That somebody asked for it, or that the WebUI closes: the WebUI's flag is set by whoever stops a picture, which may wait
    behind it."""
    if not job.stop and is_closing():
        job.stop, _unloaded[:] = True, [job]
    return job.stop


def _end(job: Job, state: str, error: str = "") -> None:
    with _guard:
        job.state, job.error = state, error


def start(job: Job) -> None:
    """Merge in the background, after those that were asked for before.

    Raises:
        LoraclrError: too many wait already
    """
    with _guard:
        queued = [other for other in _jobs.values() if other.state == "queued"]
        own = sum(other.owner == job.owner for other in queued)
        if own >= _WAITING or len(queued) >= _WAITING_IN_ALL:
            raise LoraclrError(f"{len(queued)} merges are waiting already: wait for one of them, or interrupt it.")
        _jobs[job.id] = job
        _line.append(job)
        if not _worker:
            _worker.append(threading.Thread(target=_work, name="loraclr merges", daemon=True))
            _worker[0].start()


def _work() -> None:
    """Merge what waits, until nothing does."""
    while True:
        with _guard:
            job = next((job for job in _line if job.state == "queued"), None)
            if job is None:
                _line.clear()
                _worker.clear()
                return
            _line.remove(job)
        _run_in_background(job)


def _run_in_background(job: Job) -> None:
    try:
        run(job, lock_held=False)
        if job.keeps_as:
            _keep_at_once(job)
    except (Interrupted, LoraclrError):
        pass  # the job says so
    except Exception:  # noqa: BLE001  (nobody waits for this thread; the log and the job have it)
        errors.report("LoRACLR: the merge failed", exc_info=True)


def _keep_at_once(job: Job) -> None:
    """Nobody is there to be asked: never in place of another file; if it cannot be written it is held, and the job says why."""
    try:
        name = naming.next_free(job.keeps_as, job.request.save_as)
        keep(job, name, with_sheet=bool(settings.value("loraclr_sheet")))
    except LoraclrError as error:
        job.error = str(error)
        raise


def interrupt_task(task: str) -> None:
    """Stop the merge that the tab began under this task, and nothing else: now if it runs, and before it begins if it waits."""
    with _guard:
        _stopped.append(task)
        del _stopped[:-_REMEMBERED]
        for job in _jobs.values():
            if task and job.task == task:
                job.stop = True


def is_stopped(task: str) -> bool:
    """Whether it was stopped while it waited."""
    return bool(task) and task in _stopped


def interrupt(job: Job) -> None:
    """Stop after the current evaluation of the model; a queued job does not begin, and makes way for another at once."""
    with _guard:
        job.stop = True
        if job.state == "queued":
            job.state = "interrupted"


def remove(job: Job) -> None:
    """Forget it, with its result; what runs is stopped first, and is still known then."""
    if job.state not in OVER:
        interrupt(job)
    with _guard:
        if job.state in OVER:
            _jobs.pop(job.id, None)


def keep(
    job: Job, name: str, *, overwrite: bool = False, with_sheet: bool = False
) -> running.InstalledLora | running.InstalledCheckpoint:
    """Write the file and make the WebUI list it: `keeping.write`.

    Args:
        with_sheet: write the picture to judge it by as well, as `NAME.report.png`

    Raises:
        LoraclrError: nothing to keep, a name that may not be or is taken, or it cannot be written
    """
    with _saving(job, "finished", "keep"):
        held = job.result
        kept, written = keeping.write(held.merge, held.pictures, name, overwrite=overwrite, with_sheet=with_sheet)
    with _guard:
        job.state, job.result, job.former, job.kept, job.written = "kept", None, None, kept, written
    history.record(job, held.merge, kept.path.stem)
    return kept


def put_back(job: Job) -> None:
    """Delete what was kept, and put back the file, card and pictures that it replaced.

    Raises:
        LoraclrError: it was not kept, replaced nothing, or what it replaced is not kept any more
    """
    with _saving(job, "kept", "put back"):
        keeping.put_back(job.written)
    with _guard:
        job.state, job.written = "put back", None
    history.forget(job.id)


@contextmanager
def _saving(job: Job, state: str, what: str) -> Iterator[None]:
    """Files are written or moved: of two clicks one finds nothing left to do, and so does Discard; where that fails the job is in
    its former state again, and the error in the tab's words."""
    with _guard:
        if job.state != state:
            raise LoraclrError(f"There is nothing to {what}: the merge is {job.state}.")
        job.state = "saving"
    try:
        yield
    except LoraclrError as error:
        _end(job, state)
        raise wording.reworded(error, job.called) from error
    except BaseException:
        _end(job, state)
        raise


def discard(job: Job) -> None:
    """Let go of the result, or of a comparison; nothing was written.

    Raises:
        LoraclrError: there is no result
    """
    with _guard:
        if job.state not in HOLDING:
            raise LoraclrError(f"There is nothing to discard: the merge is {job.state}.")
        _forget(job)


def _forget(job: Job) -> None:
    job.state, job.result, job.former, job.comparison = "discarded", None, None, None


def unload() -> None:
    """Stop what runs; the scripts are unloaded. Results wait on: the tab that is made anew shows them. What was replaced is let
    go of."""
    with _guard:
        for job in list(_jobs.values()):
            if job.state not in (*HOLDING, "saving"):
                if job.state not in OVER:
                    _unloaded[:] = [job]
                job.stop = True
                del _jobs[job.id]
        _line.clear()
        _stopped.clear()
    keeping.forget_all()


def shown(error: Exception, job: Job) -> str:
    """The error's text with the LoRAs' names in place of paths, and nothing of this computer's folders or of flags."""
    return wording.plain(str(error), job.called)


def _remember(job: Job) -> None:
    _unloaded.clear()
    with _guard:
        _jobs[job.id] = job
        job.stop = job.stop or is_stopped(job.task)  # between its last look and now


def _let_go() -> None:
    """Forget the oldest jobs, and the oldest results that nobody kept: an owner's own first, so that nobody drives out another's
    while there is room."""
    with _guard:
        # what is about to be kept drives out nothing
        held = [job for job in _jobs.values() if job.state == "finished" and (job.error or not job.keeps_as)]
        surplus = {job.id for job in held[:-_HELD_IN_ALL]}
        for owner in {job.owner for job in held}:
            surplus |= {job.id for job in [job for job in held if job.owner == owner][:-_HELD]}
        for job_id in surplus:
            job = _jobs[job_id]
            _forget(job)
            job.error = "Newer results took its place: nobody had kept it."
        compared = [job for job in _jobs.values() if job.state == "compared"]
        latest = {job.owner: job.id for job in compared}
        for job in compared:
            if job.id != latest[job.owner]:
                _forget(job)
        let_go_of_recordings([job.result for job in held if job.result is not None])
        over = [job.id for job in _jobs.values() if job.state in OVER and job.state not in HOLDING]
        for job_id in over[: max(0, len(_jobs) - _REMEMBERED)]:
            del _jobs[job_id]
