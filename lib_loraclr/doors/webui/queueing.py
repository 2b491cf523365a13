"""The queue: merges of the tab that are made one after the other, each kept as soon as it is finished."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...errors import LoraclrError
from ...hosts.running import checkpoint_dir, lora_dir
from ...request import output_path
from . import adding, form, jobs, naming, notes, queue_fields, rows, settings
from .choosing import Choosing


class Queueing(Choosing):
    """What the fold "Queue" does; a page finds its own merges there again when it is loaded anew."""

    def enqueue(
        self, task: str, table: str, chosen: list[str] | None, name: str, draw: bool, *values: Any
    ) -> list[Any]:
        """Merge what stands in the tab after all that waits.

        Args:
            task: that says whose page it is

        Returns:
            message, queue, name
        """
        try:
            request, names = form.build(rows.completed(table, chosen), self._fields(values))
            base = adding.of(self._fields(values), request)
            wanted = name.strip() or naming.proposal(names, request.save_as)
            if name.strip() and request.save_as != "checkpoint":
                wanted = naming.whole_name(name, settings.value("loraclr_sub_folder"))
            output_path(checkpoint_dir() if request.save_as == "checkpoint" else lora_dir(), wanted)
            asked = (table, list(chosen or ()), draw, values)
            own = {"owner": jobs.owner_of(task), "adds_to": base.lora if base else None}
            jobs.start(jobs.Job(request, names, draw, form=asked, keeps_as=wanted, **own))
        except LoraclrError as error:
            return [notes.error(str(error)), self.queue(task), gr.update()]
        return ["", self.queue(task), ""]

    def queue(self, task: str) -> str:
        """What waits, runs and was made, in its order."""
        return queue_fields.view(_own(task))

    def unqueue(self, task: str, job_id: str) -> str:
        """Take one out: what runs is stopped, and what is over is not listed any more."""
        for job in _own(task):
            if job.id == job_id:
                jobs.remove(job)
        return self.queue(task)

    def empty_queue(self, task: str) -> str:
        """Take out all but what runs."""
        for job in _own(task):
            if job.state not in ("running", "saving"):
                jobs.remove(job)
        return self.queue(task)


def _own(task: str) -> list[jobs.Job]:
    return [job for job in jobs.of_owner(jobs.owner_of(task)) if job.keeps_as]
