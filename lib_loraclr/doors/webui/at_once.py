"""What a person asks for in the tab and waits for: run now, in place of what is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import errors

from ...errors import Interrupted, LoraclrError
from . import jobs, panel


def run(task: str, shown: str, asked: Callable[[], jobs.Job], what: str, interrupted: Callable[[], str]) -> list[Any]:
    """Run a job inside `wrap_gradio_gpu_call`, which holds the queue and shows the last output with the time taken.

    Args:
        task: of the tab
        shown: id of the job whose result is shown; it makes way, as the browser has asked
        asked: makes the job
        what: it is, for the log
        interrupted: what to say where it was stopped

    Returns:
        as `notes.SHOWN`
    """
    before = jobs.find(shown)
    try:
        if jobs.is_stopped(task):  # while it waited for the queue
            raise Interrupted
        job = asked()
        if before and before.shows:
            jobs.discard(before)
        jobs.run(job, lock_held=True)
    except LoraclrError as error:
        return panel.error(str(error))
    except Interrupted:
        return panel.message(interrupted())
    except Exception as error:  # noqa: BLE001  (what was shown before is gone, and the tab must say so)
        errors.report(f"LoRACLR: the {what} failed", exc_info=True)
        return panel.error(f"{type(error).__name__}: {error}. Nothing was kept; the WebUI's log has the details.")
    return panel.result(job)
