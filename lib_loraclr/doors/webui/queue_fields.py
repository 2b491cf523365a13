"""The fold "Queue": merges for a night, one after the other. What it does is in queueing.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from modules.ui_components import FormRow

from ...solving import EFFORT, METHODS
from .notes import safe
from .scripting import by_script

if TYPE_CHECKING:
    from .job import Job
    from .tab import _Actions


class QueueFields:
    """Makes the fold; while something waits in it the browser looks again every few seconds (`loraclrQueued`).

    Attributes:
        view: what is in the queue
    """

    def __init__(self) -> None:
        with gr.Accordion("Queue", open=False, elem_id="loraclr_queue"):
            with FormRow():
                self.name = gr.Textbox(
                    label="Keep as",
                    placeholder="a free name",
                    elem_id="loraclr_queue_name",
                    max_lines=1,
                    tooltip="The name that it is kept under when it is finished; the next free one where that is taken",
                )
                self.add = gr.Button(
                    "Add to queue",
                    elem_id="loraclr_queue_add",
                    tooltip="Merges what stands in the tab now after all that waits, and keeps it at once; pictures can be made "
                    "between two merges. Reload UI empties the queue",
                )
            self.note = gr.HTML("", elem_id="loraclr_queue_note")
            self.view = gr.HTML("", elem_id="loraclr_queue_view")
        self.owner = gr.Textbox(visible=False, elem_id="loraclr_queue_owner")
        self.wanted = gr.Textbox(visible=False, elem_id="loraclr_queue_wanted")
        self.look = gr.Button(visible=False, elem_id="loraclr_queue_look")
        self.remove = gr.Button(visible=False, elem_id="loraclr_queue_remove")
        self.empty = gr.Button(visible=False, elem_id="loraclr_queue_empty")

    def connect(self, bound: _Actions, opened: Any, table: Any, picker: Any, others: Sequence[Any]) -> None:
        """The events; `loraclrEnqueue` and `loraclrOwner` put in whose page it is, the table, and which merge is meant.

        Args:
            opened: the event of the tab being looked at
            others: whether pictures are drawn, and every field
        """
        asked, owner = [self.owner, table, picker, self.name, *others], [self.owner]
        events = [
            self.add.click(
                bound.enqueue,
                asked,
                [self.note, self.view, self.name],
                **by_script("loraclrEnqueue", asked),
                show_progress=False,
            )
        ]
        for event in (opened.then, self.look.click):
            events.append(
                event(bound.queue, owner, [self.view], **by_script("loraclrOwner", owner), show_progress=False)
            )
        for button, act, inputs in (
            (self.remove, bound.unqueue, [self.owner, self.wanted]),
            (self.empty, bound.empty_queue, owner),
        ):
            events.append(
                button.click(act, inputs, [self.view], **by_script("loraclrOwner", inputs), show_progress=False)
            )
        for event in events:
            event.then(None, owner, **by_script("loraclrQueued", owner))


def view(jobs: Sequence[Job]) -> str:
    """The queue's merges, with how far each is."""
    if not jobs:
        return "<p class='loraclr-small'>Merges that are added here are made one after the other, and kept at once.</p>"
    busy = any(job.state in ("queued", "running", "saving") for job in jobs)
    kept = sum(job.state == "kept" for job in jobs)
    empty = (
        "<button type='button' class='loraclr-again loraclr-empty-queue' title='Take out all but what runs'>Empty</button>"
        if len(jobs) > 1
        else ""
    )
    return (
        f"<div class='loraclr-queue' data-busy='{int(busy)}' data-kept='{kept}'>{''.join(map(_row, jobs))}</div>{empty}"
    )


def _row(job: Job) -> str:
    method = METHODS[job.request.method]
    effort = job.request.options.get(EFFORT) if method.efforts else ""
    what = " · ".join(part for part in (method.label, str(effort or "").capitalize(), ", ".join(job.names)) if part)
    state, style = _state(job)
    tip = "Stop it; nothing of it is kept" if job.state == "running" else "Take it out of the list"
    return (
        f"<div class='loraclr-queued'><div><b>{safe(job.keeps_as)}</b> <span class='loraclr-small {style}'>{safe(state)}</span>"
        f"<div class='loraclr-small'>{safe(what)}</div></div>"
        f"<button type='button' class='loraclr-again loraclr-unqueue' data-job='{safe(job.id)}' title='{tip}'>"
        f"{'Stop' if job.state == 'running' else 'Remove'}</button></div>"
    )


def _state(job: Job) -> tuple[str, str]:
    """In words, and how it is coloured."""
    if job.state == "running":
        return f"{job.fraction():.0%} · {job.text()}", ""
    if job.state == "kept":
        name = job.kept.path.stem
        return (f"kept as {name}" if name != job.keeps_as.rpartition("/")[2] else "kept"), "loraclr-kept"
    if job.state == "failed":
        return f"failed: {job.error}", "loraclr-lost"
    if job.state == "finished" and job.error:
        return f"merged, and not kept: {job.error} Keep it on the right.", "loraclr-weakened"
    return {"queued": "waits", "finished": "being written", "saving": "being written"}.get(job.state, job.state), ""
