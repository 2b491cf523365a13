"""What the tab's components do. Nothing here raises for a mistake a person can mend: the tab says it."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

import gradio as gr
from modules import errors, util

from ...errors import Interrupted, LoraclrError
from . import (
    adding,
    arranging,
    at_once,
    catalogue,
    form,
    further,
    jobs,
    keeping,
    naming,
    notes,
    panel,
    rows,
    settings,
    trying,
    views,
    wording,
    working,
)
from .check import check as checked
from .choosing import efforts_with_times
from .comparing import Comparing
from .rows import Table


class Actions(Comparing):
    """The tab's actions; each takes and returns what gradio hands over, in the order of the tab's events."""

    # -- checking and merging

    def check(self, _: str, table: str, chosen: list[str] | None, __: str, draw: bool, *values: Any) -> list[Any]:
        try:
            concepts, refused = form.sort_out(rows.completed(table, chosen))
            if not concepts:
                return ["".join(map(notes.error, refused.values())), gr.update()]
            request = form.complete(concepts, self._fields(values))
            base = adding.of(self._fields(values), request)
            found = checked(request, tuple(concepts), refused=refused, draw=draw, with_overlap=True, base=base)
        except LoraclrError as error:
            return [notes.error(str(error)), gr.update()]
        return [views.check_view(found), efforts_with_times(found.efforts)]

    def merge(self, task: str, table: str, chosen: list[str] | None, shown: str, draw: bool, *values: Any) -> list[Any]:
        """Runs inside `wrap_gradio_gpu_call`."""

        def asked() -> jobs.Job:
            request, names = form.build(rows.completed(table, chosen), self._fields(values))
            base = adding.of(self._fields(values), request)
            own = (table, list(chosen or ()), draw, values)
            return jobs.Job(request, names, draw, task, form=own, adds_to=base.lora if base else None)

        return at_once.run(task, shown, asked, "merge", views.interrupted_view)

    def interrupt(self, task: str) -> None:
        jobs.interrupt_task(task)

    def restore(self, job_id: str, task: str) -> list[Any]:
        """After the page was loaded anew, or the result was decided on in another one: what there is to show.

        Args:
            job_id: of the result that is shown
            task: that the page waits for, or waited for when it was loaded anew; also where it is none, it tells whose page it is

        Returns:
            as `notes.SHOWN`; then what the page's own merge was asked for, as JSON for `loraclrAgain`
        """
        waiting, shown = jobs.waiting(jobs.owner_of(task)), jobs.find(job_id)
        own, unloaded = jobs.of_task(task), None
        undecided = shown is not None and shown.state in jobs.HOLDING
        if waiting and not undecided:
            seen = panel.result(waiting)
        elif own and own.state == "failed":
            seen = panel.error(own.error)
        elif own and own.state == "interrupted":
            seen = panel.message(views.interrupted_view(goes_on=not own.compares))
        elif not undecided and (unloaded := jobs.take_unloaded()):
            seen = panel.message(views.unloaded_view(unloaded))
        else:
            seen = panel.unchanged(job_id, decided=not undecided)
        return [*seen, _again(own or unloaded)]

    def work(self) -> str:
        """What merges keep on the disk."""
        try:
            return views.work_view(working.size(), working.limit_mb())
        except LoraclrError as error:
            return notes.error(wording.plain(str(error)))

    def empty_work(self) -> str:
        """Delete it."""
        try:
            left = working.empty()
        except LoraclrError as error:
            return notes.error(wording.plain(str(error)))
        return views.work_view(left, working.limit_mb())

    # -- refining further

    def refine(self, task: str, table: str, shown: str, draw: bool, steps: float | None) -> list[Any]:
        """Go on from a result that is not kept yet, which stays; runs inside `wrap_gradio_gpu_call`, as `merge` does."""
        before = jobs.find(shown)
        try:
            if jobs.is_stopped(task):
                raise Interrupted
            job = further.job_of(_job(shown), Table.parse(table), steps, draw=draw, task=task)
            jobs.run(job, lock_held=True)
        except LoraclrError as error:
            return _still(before, notes.error(str(error)))
        except Interrupted:
            return _still(before, notes.note("Interrupted. The result before is still there."))
        except Exception as error:  # noqa: BLE001  (as of `merge`)
            errors.report("LoRACLR: the merge could not be refined further", exc_info=True)
            return _still(before, notes.error(f"{type(error).__name__}: {error}. The WebUI's log has the details."))
        before.other = job.id
        return panel.result(job)

    def other(self, job_id: str) -> list[Any]:
        """The result that this one went on from, or that went on from it."""
        job = jobs.find(job_id)
        other = jobs.other_of(job) if job else None
        if other is None:
            return panel.error(
                "The other result is not there any more: it was kept or discarded, or newer ones took its place."
            )
        return panel.result(other)

    # -- trying

    def attempt(self, task: str, job_id: str, *values: Any) -> list[str]:
        """Draw a prompt with a result that is not kept yet; runs inside `wrap_gradio_gpu_call`, as `merge` does.

        Returns:
            pictures, message; to that the WebUI adds the time taken
        """
        job = None
        try:
            if jobs.is_stopped(task):
                raise Interrupted
            job = _job(job_id)
            return [trying.view(trying.attempt(task, job, trying.named(list(values)))), ""]
        except LoraclrError as error:
            return ["", notes.error(trying.failed(error, job))]
        except Interrupted:
            return ["", trying.interrupted()]
        except Exception as error:  # noqa: BLE001  (the result is still there, and the tab must say what went wrong)
            errors.report("LoRACLR: the prompt could not be tried", exc_info=True)
            return ["", notes.error(trying.failed(error, job))]

    # -- keeping

    def keep(self, job_id: str, name: str, sub_folder: str) -> list[Any]:
        return self._keep(job_id, name, sub_folder, overwrite=False)

    def replace(self, job_id: str, name: str, sub_folder: str) -> list[Any]:
        return self._keep(job_id, name, sub_folder, overwrite=True)

    def another_name(self) -> Any:
        """Another name was written: nobody has been asked whether that may be replaced."""
        return gr.update(visible=False)

    def named(self, job_id: str, name: str, sub_folder: str) -> str:
        """A name was written: what is wrong with it, beside it."""
        job = jobs.find(job_id)
        wrong = naming.obstacle(name, sub_folder, job.request.save_as) if job else ""
        return notes.error(wrong) if wrong else ""

    def _keep(self, job_id: str, name: str, sub_folder: str, *, overwrite: bool) -> list[Any]:
        """Write the file.

        Returns:
            message, decision, use row, replace button, put-back button, what the browser needs to know
        """
        try:
            job = _job(job_id)
            wanted = name.strip() or naming.proposed(job.names, job.request.save_as)
            with_sheet = bool(settings.value("loraclr_sheet"))
            jobs.keep(job, naming.whole_name(wanted, sub_folder), overwrite=overwrite, with_sheet=with_sheet)
        except LoraclrError as error:
            taken = gr.update(visible=isinstance(error, jobs.NameTaken))
            return [notes.error(str(error)), gr.update(), gr.update(), taken, gr.update(), ""]
        hidden, visible = gr.update(visible=False), gr.update(visible=True)
        replaced = gr.update(visible=keeping.can_be_put_back(job.written))
        return [views.kept_view(job), hidden, visible, hidden, replaced, _known(job)]

    def arrangement(self, chosen: str) -> str:
        """What sending with this arrangement will do."""
        told = arranging.sentence(chosen)
        return f"<p class='loraclr-small'>{notes.safe(told)}</p>" if told else ""

    def infotext(self, job_id: str, arrangement: str, now: str) -> list[str]:
        """What the WebUI pastes into txt2img.

        Args:
            now: what stands there, as JSON from the browser

        Returns:
            infotext, message
        """
        try:
            job = _job(job_id)
            text = arranging.infotext(job.request, views.tag(job), arrangement, json.loads(now or "{}"))
        except LoraclrError as error:
            return ["", notes.error(str(error))]
        return [text, self.arrangement(arrangement)]

    def put_back(self, job_id: str) -> list[Any]:
        """Give what was replaced its name again.

        Returns:
            message, use row, what the browser needs to know
        """
        try:
            job = _job(job_id)
            jobs.put_back(job)
        except LoraclrError as error:
            return [notes.error(str(error)), gr.update(), ""]
        said = f"Put back: {job.kept.name} is again what it was, and this merge is deleted."
        return [notes.note(said), gr.update(visible=False), _known(job)]

    def discard(self, job_id: str) -> list[Any]:
        try:
            job = _job(job_id)
            jobs.discard(job)
        except LoraclrError as error:
            return panel.error(str(error))
        other = jobs.other_of(job)
        if other is not None:
            return panel.beside(
                other, notes.note("Discarded. This is the other result, which is still to be decided on.")
            )
        return panel.message(notes.note("Discarded. Nothing was written."))

    def open_folder(self, job_id: str) -> None:
        job = jobs.find(job_id)
        if job and job.kept and settings.may_open_folders():
            util.open_folder(str(job.kept.path.parent))


def _still(before: jobs.Job | None, said: str) -> list[Any]:
    """A message, and the result before as long as it is there."""
    held = before is not None and before.state == "finished"
    return panel.beside(before, said) if held else panel.message(said)


def _known(job: jobs.Job) -> str:
    """What the browser needs to know of a merge that was kept."""
    known = {"tag": views.tag(job), "triggers": views.triggers(job), "inputs": catalogue.known_as(job.names)}
    return json.dumps({**known, "name": job.kept.name, "fresh": secrets.token_hex(4)})


def _again(job: jobs.Job | None) -> str:
    """What stood in the tab when a merge was begun there; empty for none."""
    if job is None or job.form is None:
        return ""
    table, chosen, draw, values = job.form
    try:
        picked = catalogue.still_there(chosen, catalogue.choices())
    except LoraclrError:
        return ""
    # the rows are taken over as those of a prompt are
    taken = replace(Table.parse(table), taken=secrets.token_hex(4)).dump()
    return json.dumps([picked, taken, draw, *values])


def _job(job_id: str) -> jobs.Job:
    job = jobs.find(job_id)
    if job is None:
        raise LoraclrError("There is no result any more: merge again.")
    return job
