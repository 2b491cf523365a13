"""Compare methods: what the button under Advanced does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ...errors import LoraclrError
from . import at_once, catalogue, comparison, estimate, form, jobs, notes, pace, rows, views
from .queueing import Queueing


class Comparing(Queueing):
    """What stands in the tab, merged by one method after the other."""

    def compare(
        self, task: str, table: str, chosen: list[str] | None, shown: str, draw: bool, *values: Any
    ) -> list[Any]:
        """Runs inside `wrap_gradio_gpu_call`, as `Actions.merge` does.

        Args:
            values: the fields, and then the labels of the methods, none for all
        """
        *fields, methods = values

        def asked() -> jobs.Job:
            request, names = form.build(rows.completed(table, chosen), self._fields(fields))
            if len(names) < 2:
                raise LoraclrError("There is nothing to compare: choose two or more LoRAs at the top.")
            own = {
                "compares": comparison.asked_for(methods, request),
                "form": (table, list(chosen or ()), draw, fields),
            }
            return jobs.Job(request, names, draw, task, **own)

        return at_once.run(task, shown, asked, "comparison", lambda: views.interrupted_view(goes_on=False))

    def comparable(self) -> Any:
        """The methods to choose from, once the tab is looked at: those that only this offers take longer to import."""
        return gr.update(choices=comparison.choices())

    def comparing_takes(self, chosen: list[str] | None, draw: bool, *values: Any) -> str:
        """How long it would take, once something is chosen and the model is not busy.

        Args:
            values: as of `compare`
        """
        *fields, methods = values
        names = [catalogue.name_of(item) for item in chosen or ()]
        told = self._comparing_takes(names, draw, fields, methods) if len(names) > 1 else ""
        return f"<p class='loraclr-small'>{notes.safe(told)}</p>" if told else ""

    def _comparing_takes(self, names: Sequence[str], draw: bool, fields: Sequence[Any], methods: list[str]) -> str:
        try:
            request = replace(form.settings(self._fields(fields)), concepts=estimate.placeholder(names))
            request.recording.check()
            host = pace.probe(request, wait=False)
            if host is None:
                return ""
            asked, key = comparison.asked_for(methods, request), pace.key_of(request, host)
            rounds = estimate.comparison(request, asked, host, draw=draw)
        except LoraclrError:
            return ""
        total = sum(sum(estimate.seconds(own, key).values()) for own in rounds)
        number = "one method" if len(asked) == 1 else f"{len(asked)} methods"
        return f"{number}: {notes.span(*estimate.span(total, key))}".capitalize() + " or more, from one recording."
