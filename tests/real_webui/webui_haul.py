"""Merge after merge inside the real WebUI, each with a picture after it: kept, put back, discarded, forgotten, interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from webui_faults import little, look, new_job, resident
from webui_pictures import picture

from lib_loraclr.errors import Interrupted

#: what becomes of the merges, in turn; of those that nobody decides on two are held
ENDINGS = ("finished", "kept", "put back", "discarded", "interrupted")
#: how they are made, in turn: so little that a merge takes seconds
_WAYS: tuple[dict[str, Any], ...] = (
    {"method": "average"},
    {"options": {"effort": "layers"}},
    {"options": {"effort": "balanced", "steps": 1, "batch_size": 2}, "memory_mb": 2000},
)


def haul(number: int, names: Sequence[Sequence[str]], prompts: Sequence[str]) -> dict[str, Any]:
    """One merge and pictures.

    Returns:
        what became of it, what it and its pictures took in seconds of the processor, on which other programs have no bearing,
        and what is there afterwards
    """
    from lib_loraclr.doors.webui import jobs

    job = new_job(names, draw=number % 4 == 0, **_WAYS[number % len(_WAYS)])
    ending = ENDINGS[number % len(ENDINGS)]
    begun = time.process_time()
    with little():
        _end(jobs, job, ending)
    merged = time.process_time()
    drawn = [picture(prompt) for prompt in prompts]
    ended = time.process_time()
    found = look()
    told = {"state": job.state, "pictures": drawn, "seconds": merged - begun, "drawing": ended - merged}
    return {**found, **told, "resident": resident(), "threads": threading.active_count(), "jobs": len(jobs._jobs)}


def _end(jobs: Any, job: Any, ending: str) -> None:
    if ending == "interrupted":
        jobs.interrupt(job)
        try:
            jobs.run(job, lock_held=False)
        except Interrupted:
            return
    jobs.run(job, lock_held=False)
    if ending in ("kept", "put back"):
        jobs.keep(job, "haul", overwrite=True)
    if ending == "put back":
        jobs.put_back(job)
    if ending == "discarded":
        jobs.discard(job)
