"""What stands in the tab's result column, as updates of its components: a merge, nothing, or a message."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...hosts import running
from . import comparison_view, history, jobs, naming, notes, trying, views
from .notes import SHOWN
from .trial_fields import ALL_TAGS, BASE, NOTHING


def result(job: jobs.Job) -> list[Any]:
    """A finished merge, to be kept or discarded, under a name of its own; or a comparison, of which there is nothing to keep."""
    if job.comparison is not None:
        shown = message(comparison_view.view(job.comparison))
        shown[SHOWN.index("job")] = job.id
        return shown
    pictures, save_as = job.result.pictures, job.request.save_as
    what = "checkpoint" if save_as == "checkpoint" else "LoRA"
    if pictures is not None:
        running.make_temporary_folder()
    return _shown(
        view=views.result_view(job),
        picture=gr.update(value=pictures.sheet if pictures else None, visible=pictures is not None),
        advice=views.advice_view(job),
        decide=gr.update(visible=True),
        name=gr.update(value=naming.proposed(job.names, save_as), label=f"Name of the new {what}"),
        copy=gr.update(value="Copy trigger words" if save_as == "checkpoint" else "Copy tag"),
        other=gr.update(visible=jobs.other_of(job) is not None),
        try_prompt=gr.update(placeholder=trying.proposed_prompt(job.result.merge)),
        against=gr.update(choices=[NOTHING, BASE, ALL_TAGS, *(lora.name for lora in history.merged_loras())]),
        try_width=job.result.merge.request.recording.width,
        try_height=job.result.merge.request.recording.height,
        job=job.id,
    )


def beside(job: jobs.Job, html: str) -> list[Any]:
    """A result that is still there, and a message below it."""
    shown = result(job)
    shown[SHOWN.index("log")] = html
    return shown


def message(html: str) -> list[Any]:
    """A message in place of any result."""
    return _shown(view=html, picture=gr.update(value=None, visible=False))


def error(text: str) -> list[Any]:
    """What went wrong in place of any result."""
    return message(notes.error(text))


def unchanged(job_id: str, *, decided: bool) -> list[Any]:
    """What is shown stays.

    Args:
        decided: it has been kept or discarded, perhaps in another page, and is not asked about any more
    """
    same = dict.fromkeys(SHOWN, gr.update())
    if decided:
        same["decide"] = gr.update(visible=False)
    return list({**same, "job": job_id, "log": gr.update()}.values())


def _shown(**given: Any) -> list[Any]:
    """The components' updates in their order; of what is not given nothing is seen."""
    hidden = gr.update(visible=False)
    none = {
        "advice": "",
        "decide": hidden,
        "use": hidden,
        "replace": hidden,
        "other": hidden,
        "tried": "",
        "job": "",
        "log": "",
    }
    return [{**none, **given}.get(name, gr.update()) for name in SHOWN]
