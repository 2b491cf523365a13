"""What the tab does while LoRAs are chosen: the picker, the rows, times, and the merges that can be begun from."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ...errors import LoraclrError
from ...hosts.running import find_lora
from ...request import MergeRequest, PromptOptions
from ...solving import METHODS, all_efforts
from . import adding, adding_fields, catalogue, estimate, form, history, history_fields, labels, notes, pace, rows
from .rows import Table


class Choosing:
    """What is done before anything is checked or merged; each takes and returns what gradio hands over, in the order of the tab's
    events."""

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: of the tab's fields, in the order their values arrive
        """
        self._names = tuple(names)

    # -- choosing

    def open(self, chosen: list[str] | None) -> list[Any]:
        """The tab is looked at: what is installed, against the checkpoint that is loaded now."""
        return _listing(chosen, rescan=False)

    def refresh(self, chosen: list[str] | None) -> list[Any]:
        return _listing(chosen, rescan=True)

    def take(self, prompt: str, taken: str, templates: str, plain: str) -> list[Any]:
        """From prompt: tags and weights become rows, the other words a template and a prompt that calls no concept."""
        try:
            concepts, words, unknown = catalogue.from_prompt(prompt or "")
            listed = catalogue.choices()
        except LoraclrError as error:
            return [gr.update(), taken, notes.error(str(error)), templates, plain]
        if not concepts:
            text = (
                " ".join(unknown)
                if unknown
                else "There are no <lora:…> tags in txt2img's prompt: write some there first."
            )
            return [gr.update(), taken, notes.passing(text, "loraclr-error"), templates, plain]
        found = tuple(map(rows.of_prompt, concepts))
        rest = catalogue.without(words, [row["trigger"] for row in found if row["trigger"]])
        table, before = Table(found, secrets.token_hex(4), rest), Table.parse(taken).words
        message = "".join(notes.passing(text, "loraclr-error") for text in unknown)
        if rest:
            message += notes.passing(f"The other words ({rest}) were added to the prompts that are recorded.")
        templates, plain = _instead(before, rest, templates, "{trigger}, "), _instead(before, rest, plain)
        chosen = catalogue.still_there([c.lora for c in concepts], listed)
        return [gr.update(choices=listed, value=chosen), table.dump(), message, templates, plain]

    def add(self, name: str, chosen: list[str] | None) -> list[Any]:
        """From a card of the Lora tabs: one LoRA more.

        Returns:
            picker, message
        """
        try:
            wanted = find_lora(name).name
            listed = catalogue.choices()
        except LoraclrError as error:
            return [gr.update(), notes.error(str(error))]
        names = [*map(catalogue.name_of, chosen or ()), wanted]
        kept = catalogue.still_there(list(dict.fromkeys(names)), listed)
        return [gr.update(choices=listed, value=kept), ""]

    def select(self, shown: str, taken: str, chosen: list[str] | None) -> list[Any]:
        """The selection changed: rows for it.

        Returns:
            rows, and for which selection they are: gradio drops what changes while it waits for an answer
        """
        names = [catalogue.name_of(item) for item in chosen or ()]
        table = rows.selected(names, Table.parse(shown), Table.parse(taken))
        return [rows.render(table, rows.found(table.rows)), json.dumps(chosen or [])]

    def times(self, chosen: list[str] | None, draw: bool, *values: Any) -> list[Any]:
        """The expected time beside each effort, once something is chosen and the model is not busy.

        Returns:
            the efforts, and for which selection they are
        """
        names = [catalogue.name_of(item) for item in chosen or ()]
        return [self._times(names, draw, values) if names else gr.update(), json.dumps(chosen or [])]

    def _times(self, names: Sequence[str], draw: bool, values: Sequence[Any]) -> Any:
        try:
            given = self._fields(values)
            request = replace(form.settings(given), concepts=estimate.placeholder(names))
            request.recording.check()
            host, start = pace.probe(request, wait=False), adding.glimpse(given)
            return efforts_with_times(estimate.efforts(request, host, draw=draw, start=start)) if host else gr.update()
        except LoraclrError:
            return gr.update()

    def preset(self, name: str) -> list[str]:
        options = PromptOptions.preset(labels.code_of(name, labels.BANKS))
        return ["\n".join(options.templates), "\n".join(options.plain)]

    def method(self, chosen: str) -> list[Any]:
        """Show the options of the method, and the effort where it has one."""
        has_efforts = bool(METHODS[chosen].efforts)
        return [*(gr.update(visible=name == chosen) for name in METHODS), gr.update(visible=has_efforts)]

    # -- the merges that were made here

    def history(self) -> str:
        """What was made, the latest first."""
        try:
            found = history.entries()
            urls = {entry_id: catalogue.preview_url(lora) for entry_id, lora in history.files(found).items()}
            return history_fields.view(found, urls)
        except LoraclrError as error:
            return notes.error(str(error))

    def again(self, entry_id: str) -> list[Any]:
        """Fill the form with what a merge was asked for.

        Returns:
            picker, rows, message, and every field
        """
        try:
            return self._filled(history.request_of(history.find(entry_id)))
        except LoraclrError as error:
            return self._as_it_was(error)

    def add_to(self, name: str, chosen: list[str] | None) -> list[Any]:
        """Fill the form with what is in a merged LoRA, which the merge then goes on from.

        Args:
            chosen: what stays chosen beside it

        Returns:
            as `again`
        """
        try:
            found = adding.base(name)
            others = [other for other in map(catalogue.name_of, chosen or ()) if other != found.lora.name]
            return self._filled(found.request, others, found.lora.name)
        except LoraclrError as error:
            return self._as_it_was(error)

    def add_to_kept(self, known: str, chosen: list[str] | None) -> list[Any]:
        """As `add_to`, of the merge that was kept last.

        Args:
            known: what the browser knows of it
        """
        return self.add_to(json.loads(known or "{}").get("name", ""), chosen)

    def add_to_nothing(self) -> list[str]:
        """Merge afresh, whatever is chosen.

        Returns:
            the merged LoRA, and what is said of it
        """
        return ["", ""]

    def adding(self, name: str) -> str:
        """What is added to, above the rows."""
        try:
            start = adding.glimpse({adding_fields.FIELD: name})
        except LoraclrError as error:
            return notes.error(str(error))
        return adding_fields.view(name, sorted(start.labels)) if start else ""

    def _as_it_was(self, error: LoraclrError) -> list[Any]:
        return [gr.update(), gr.update(), notes.error(str(error)), *(gr.update() for _ in self._names)]

    def _filled(self, request: MergeRequest, others: Sequence[str] = (), add_to: str = "") -> list[Any]:
        """The form with a request in it.

        Args:
            others: LoRAs that are chosen besides
            add_to: the merged LoRA that is gone on from

        Raises:
            LoraclrError: the built-in extension Lora is switched off
        """
        listed = catalogue.choices()
        table, missing = rows.of_request(request)
        chosen = catalogue.still_there(list(dict.fromkeys([*(row.lora for row in table.rows), *others])), listed)
        said = [f"{', '.join(missing)} is not installed any more, and was left out."] if missing else []
        said += [f"The tab has no field for {what}: it was left out." for what in form.not_in_the_tab(request)]
        fields = {**form.fields_of(request), adding_fields.FIELD: add_to}
        message = "".join(notes.passing(text, "loraclr-error") for text in said)
        values = [fields.get(name, gr.update()) for name in self._names]
        return [gr.update(choices=listed, value=chosen), table.dump(), message, *values]

    def _fields(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._names, values, strict=True))


def _listing(chosen: list[str] | None, *, rescan: bool) -> list[Any]:
    try:
        listed = catalogue.choices(rescan=rescan)
    except LoraclrError as error:
        return [gr.update(choices=[]), notes.error(str(error))]
    message = "" if listed else notes.note("No LoRAs are installed yet: put .safetensors files into models/Lora.")
    kept = catalogue.still_there(chosen or [], listed)
    # a value that has not changed would undo what was chosen meanwhile
    value = {} if kept == (chosen or []) else {"value": kept}
    return [gr.update(choices=listed, **value), message]


def _instead(before: str, words: str, lines: str, prefix: str = "") -> str:
    """Lines that begin with one of the words from a prompt, in place of that with the words from the prompt before."""
    others = [line for line in lines.splitlines() if line not in (prefix + before, prefix + words)]
    return "\n".join([prefix + words, *others] if words else others)


def efforts_with_times(seconds: dict[str, tuple[float, float]]) -> Any:
    """The efforts as choices, each with the time that it takes; without, where it cannot be chosen for what is asked."""
    times = {name: f" ({notes.span(*taken)})" for name, taken in seconds.items()}
    choices = [(f"{name.capitalize()}{times.get(name, '')}", name.capitalize()) for name in all_efforts()]
    return gr.update(choices=choices) if times else gr.update()
