"""The LoRACLR tab: its components. What they do is in actions.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import gradio as gr
from modules.call_queue import wrap_gradio_gpu_call
from modules.ui_components import DropdownMulti, FormRow, ResizeHandleRow, ToolButton

from ...solving import EFFORT
from . import notes, settings, start
from .adding_fields import FIELD, AddingFields
from .arranging_fields import ArrangingFields
from .fields import Fields
from .further_fields import FurtherFields
from .history_fields import HistoryFields
from .notes import SHOWN
from .queue_fields import QueueFields
from .rows import Table, render
from .scripting import by_script
from .trial_fields import TrialFields

#: pixels of a button, so that all that can be done with what was kept stands in one row
_NARROW = 120


def create() -> list[tuple[gr.Blocks, str, str]]:
    """For `script_callbacks.on_ui_tabs`. Looks at no file: the list is filled when the tab is opened."""
    start.end_former()
    own: list[Any] = []
    with gr.Blocks(analytics_enabled=False) as tab:
        own = _Tab().left.defaults
    for block in tab.blocks.values():
        # what a person chose for one merge is no default for the next, nor may it outlive a change of defaults here
        block.do_not_save_to_config = block not in own
    return [(tab, "LoRACLR", "loraclr")]


class _Actions:
    """`actions.Actions`, imported when the first is wanted: the engine behind them takes longer to import than the WebUI's start
    may take for a tab that nobody has opened."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    @cached_property
    def _actions(self) -> Any:
        return start.actions(self._names)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def act(*values: Any) -> Any:
            return getattr(self._actions, name)(*values)

        return act


class _Tab:
    """The tab's components, made in the order they are seen, and their events."""

    def __init__(self) -> None:
        self._hidden()
        with gr.Row(elem_id="loraclr_toprow", variant="compact", equal_height=False):
            with gr.Column(scale=6, elem_id="loraclr_pick"):
                self._picker()
            with gr.Column(scale=1, elem_id="loraclr_actions_column", min_width=320):
                self._buttons()
        self.message = gr.HTML("", elem_id="loraclr_message")
        with ResizeHandleRow(equal_height=False):
            with gr.Column(variant="compact", elem_id="loraclr_settings"):
                self.adding = AddingFields()
                self.rows = gr.HTML(render(Table(), {}), elem_id="loraclr_rows")
                self.left = Fields()
                self.left.fields[FIELD] = self.adding.field
                self.queue = QueueFields()
                self.history = HistoryFields()
            with gr.Column(elem_id="loraclr_results"):
                self._results()
        self._connect()

    def _hidden(self) -> None:
        """What the browser hands over: task ids, rows as JSON, txt2img's prompt; and what Python hands back."""
        # not a label, as which the WebUI hides its own: that of gradio 4 takes no text
        self.task = gr.Textbox(visible=False, elem_id="loraclr_task")
        self.table = gr.Textbox(visible=False, elem_id="loraclr_table")
        self.taken = gr.Textbox(Table().dump(), visible=False, elem_id="loraclr_taken")
        self.prompt = gr.Textbox(visible=False, elem_id="loraclr_prompt")
        self.job = gr.Textbox(visible=False, elem_id="loraclr_job")
        self.kept = gr.Textbox(visible=False, elem_id="loraclr_kept")
        self.opened = gr.Button(visible=False, elem_id="loraclr_opened")
        self.lost = gr.Textbox(visible=False, elem_id="loraclr_lost")
        self.asked = gr.Textbox(visible=False, elem_id="loraclr_asked")
        self.again = gr.Button(visible=False, elem_id="loraclr_again")
        self.answered = gr.Textbox(visible=False, elem_id="loraclr_answered")
        self.timed = gr.Textbox(visible=False, elem_id="loraclr_timed")
        self.added = gr.Textbox(visible=False, elem_id="loraclr_added")
        self.add = gr.Button(visible=False, elem_id="loraclr_add")
        gr.Button("Skip", visible=False, elem_id="loraclr_skip")  # Alt+Enter looks for it

    def _picker(self) -> None:
        with FormRow(elem_id="loraclr_pick_row"):
            self.picker = DropdownMulti(
                label="LoRAs to merge",
                choices=[],
                elem_id="loraclr_loras",
                tooltip="Type to search in folders, names and aliases. ⚠ marks those made for another kind of checkpoint.",
            )
            self.refresh = ToolButton("\U0001f504", elem_id="loraclr_refresh", tooltip="Look for new LoRAs")
            self.from_prompt = ToolButton(
                "↙️",
                elem_id="loraclr_from_prompt",
                tooltip="Take the <lora:…> tags, their weights and the other words from txt2img's prompt",
            )

    def _buttons(self) -> None:
        with gr.Row(elem_id="loraclr_actions"):
            self.check = gr.Button(
                "Check", elem_id="loraclr_check", tooltip="What would be merged, what cannot and why, how long it takes"
            )
            with gr.Row(elem_id="loraclr_generate_box", elem_classes=["generate-box"]):
                self.interrupt = gr.Button(
                    "Interrupt",
                    elem_id="loraclr_interrupt",
                    elem_classes="generate-box-interrupt",
                    tooltip="Stop after the current evaluation of the model; nothing is kept (Esc)",
                )
                self.interrupting = gr.Button(
                    "Interrupting...", elem_id="loraclr_interrupting", elem_classes="generate-box-interrupting"
                )
                self.merge = gr.Button(
                    "Merge",
                    elem_id="loraclr_generate",
                    variant="primary",
                    tooltip="Merge now (Ctrl+Enter); nothing is written yet",
                )

    def _results(self) -> None:
        with gr.Column(variant="panel", elem_id="loraclr_results_panel", elem_classes=["progress-container"]):
            with gr.Group(elem_id="loraclr_bar_anchor"):
                self.view = gr.HTML(notes.WELCOME, elem_id="loraclr_view")
            self.picture = gr.Image(
                visible=False,
                show_label=False,
                interactive=False,
                type="pil",
                elem_id="loraclr_picture",
                show_download_button=False,
            )
            with gr.Column(visible=False, elem_id="loraclr_decide") as self.decide:
                self._decision()
            with gr.Column(visible=False, elem_id="loraclr_use") as self.use:
                self._usage()
            self.log = gr.HTML("", elem_id="loraclr_log")

    def _usage(self) -> None:
        """What can be done with a merge that was kept."""
        self.arranging = ArrangingFields()
        with gr.Row(elem_id="loraclr_use_buttons"):
            self.send = gr.Button(
                "Send to txt2img",
                variant="primary",
                elem_id="loraclr_send",
                min_width=_NARROW,
                tooltip="Adds the tag and the trigger words to the prompt there; with an arrangement, a prompt of its own",
            )
            self.copy = gr.Button(
                "Copy tag",
                elem_id="loraclr_copy",
                min_width=_NARROW,
                tooltip="With the trigger words, to paste into any prompt",
            )
            self.adding.kept_button(min_width=_NARROW)
            self.folder = gr.Button(
                "Open folder",
                elem_id="loraclr_folder",
                min_width=_NARROW,
                visible=settings.may_open_folders(),
                tooltip="Where the new LoRA is, on the computer that the WebUI runs on",
            )
            self.put_back = gr.Button(
                "Put back",
                elem_id="loraclr_put_back",
                min_width=_NARROW,
                visible=False,
                tooltip="Delete the new file, and give the one that it replaced its name again, with its card and pictures",
            )

    def _decision(self) -> None:
        """What a result is called, and what becomes of it."""
        self.advice = gr.HTML("", elem_id="loraclr_advice")
        self.trial = TrialFields()
        self.further = FurtherFields()
        with FormRow(elem_id="loraclr_name_row"):
            self.name = gr.Textbox(
                label="Name of the new LoRA",
                placeholder="a free name is proposed",
                elem_id="loraclr_name",
                max_lines=1,
                tooltip="Of this result; prompts call it by that",
            )
            self.sub_folder = gr.Textbox(
                value=settings.value("loraclr_sub_folder"),
                label="Sub-folder",
                placeholder="none",
                elem_id="loraclr_sub_folder",
                max_lines=1,
                tooltip="Inside the LoRA folder",
                scale=0,
                min_width=140,
            )
        self.name_note = gr.HTML("", elem_id="loraclr_name_note")
        with gr.Row(elem_id="loraclr_decide_buttons"):
            self.keep = gr.Button(
                "Keep",
                variant="primary",
                elem_id="loraclr_keep",
                tooltip="Write the file, its card and its picture",
            )
            self.replace = gr.Button(
                "Replace existing",
                visible=False,
                variant="stop",
                elem_id="loraclr_replace",
                tooltip="Write over the LoRA of this name, with its card and its picture",
            )
            self.discard = gr.Button("Discard", elem_id="loraclr_discard", tooltip="Nothing was written, nothing stays")

    def _connect(self) -> None:
        """The events; functions of javascript/loraclr.js put the task id and the table into the first inputs."""
        tried = {**self.trial.shown, "other": self.further.other}
        self.shown = [tried[name] if name in tried else getattr(self, name) for name in SHOWN]
        bound = _Actions(list(self.left.fields))
        self._connect_choosing(bound)
        self._connect_merging(bound)
        self._connect_result(bound)

    def _connect_choosing(self, bound: _Actions) -> None:
        left, fields = self.left, list(self.left.fields.values())
        listing = {"outputs": [self.picker, self.message], "show_progress": False}
        again = [self.picker, self.taken, left.draw, *fields]
        opened = self.opened.click(bound.open, [self.picker], **listing).then(
            bound.restore,
            [self.job, self.lost],
            [*self.shown, self.asked],
            **by_script("loraclrLost", [self.job, self.lost]),
            show_progress=False,
        )
        # in the browser, which alone knows whether something has been chosen meanwhile
        asked = opened.then(None, [self.asked, *again], again, **by_script("loraclrAgain", [self.asked, *again]))
        added = [self.added, self.picker]
        self.add.click(
            bound.add, added, [self.picker, self.message], **by_script("loraclrAdded", added), show_progress=False
        )
        self.refresh.click(bound.refresh, [self.picker], **listing)
        words = [left.fields["templates"], left.fields["plain"]]
        taken = self.from_prompt.click(
            bound.take,
            [self.prompt, self.taken, *words],
            [self.picker, self.taken, self.message, *words],
            **by_script("loraclrPrompt", [self.prompt, self.taken, *words]),
            show_progress=False,
        )
        opened.then(bound.history, [], [self.history.view], show_progress=False)
        self.queue.connect(bound, opened, self.table, self.picker, [left.draw, *fields])
        form = [self.picker, self.taken, self.message, *fields]
        filled = self.history.connect(bound.again, form)
        added = self.adding.connect(bound, self.picker, self.kept, form)
        for event in (asked, filled, *added):
            self.adding.follow(bound, event.then)
        # The checkpoint may be another one than when the tab was last looked at; a picker that holds the same names as before a
        # take-over does not change, but their weights may have.
        for select in (
            opened.then,
            taken.then,
            filled.then,
            *(event.then for event in added),
            self.picker.change,
            self.again.click,
        ):
            self._connect_selection(bound, select)
        self.left.preset.change(bound.preset, [self.left.preset], words, show_progress=False)
        left.fields["method"].change(
            bound.method,
            [left.fields["method"]],
            [*self.left.method_boxes.values(), left.fields[EFFORT]],
            show_progress=False,
        )

    def _connect_merging(self, bound: _Actions) -> None:
        fields = self.left.fields
        whole = [self.task, self.table, self.picker, self.job, self.left.draw, *fields.values()]
        self.check.click(
            bound.check,
            whole,
            [self.view, fields[EFFORT]],
            **by_script("loraclrCollect", whole),
            show_progress="minimal",
        )
        merged = self.merge.click(
            wrap_gradio_gpu_call(bound.merge, extra_outputs=[gr.update() for _ in SHOWN[1:]]),
            whole,
            self.shown,
            **by_script("loraclrSubmit", whole),
            show_progress=False,
        )
        self.left.work.connect(bound, self.opened.click, merged.then)
        self.left.compare.connect(bound, whole, self.shown, self.opened.click)
        self._connect_times(bound, merged.then)
        self.left.compare.follow(bound, self.left.compare.methods.change, [self.picker, *whole[4:]])
        for field in self.left.timed:
            # a slider tells when it is let go of; of a number gradio 3 tells when it is written, and 4 only that it changes
            ended = {gr.Slider: "release", gr.Number: "blur"}.get(type(field), "change")
            written = getattr(field, ended, field.change)
            self._connect_times(bound, written)
        for button in (self.interrupt, self.interrupting):
            # past gradio's queue, whose connections break while the computer is too busy: then is when it is pressed
            button.click(
                bound.interrupt,
                [self.task],
                **by_script("loraclrTask", [self.task]),
                show_progress=False,
                queue=False,
            )

    def _connect_selection(self, bound: _Actions, select: Callable[..., Any]) -> None:
        """Rows and times for what is chosen.

        gradio drops an event while the answer to the one before is awaited, as when LoRAs are chosen quickly; so every answer
        says which selection it is for, and the browser asks again where that is not the one it has (`loraclrSettle`).

        Args:
            select: the event
        """
        inputs, answered = [self.table, self.taken, self.picker], [self.picker, self.answered]
        chosen = select(
            bound.select,
            inputs,
            [self.rows, self.answered],
            **by_script("loraclrTable", inputs),
            show_progress=False,
        )
        chosen.success(None, answered, **by_script("loraclrSettle", answered))
        self._connect_times(bound, chosen.then)

    def _connect_times(self, bound: _Actions, after: Callable[..., Any]) -> None:
        """The time that each effort takes.

        Args:
            after: the event that changes it
        """
        fields = self.left.fields
        timed = after(
            bound.times,
            [self.picker, self.left.draw, *fields.values()],
            [fields[EFFORT], self.timed],
            show_progress=False,
        )
        timed.success(None, [self.picker, self.timed], **by_script("loraclrSettle", [self.picker, self.timed]))
        self.left.compare.follow(bound, timed.then, [self.picker, self.left.draw, *fields.values()])

    def _connect_result(self, bound: _Actions) -> None:
        self.trial.connect(bound.attempt, self.task, self.job)
        self.further.connect(bound, [self.task, self.table, self.job, self.left.draw], self.job, self.shown)
        where, listed = [self.job, self.name, self.sub_folder], by_script("loraclrKept", [self.kept])
        kept = [self.log, self.decide, self.use, self.replace, self.put_back, self.kept]
        for button, write in ((self.keep, bound.keep), (self.replace, bound.replace)):
            written = button.click(write, where, kept, show_progress="minimal")
            written.then(None, [self.kept], **listed)
            written.then(bound.history, [], [self.history.view], show_progress=False)
        for field in where[1:]:
            # what may be replaced is the name that was refused, not one that is written after it
            field.input(bound.another_name, outputs=[self.replace], show_progress=False)
            field.blur(bound.named, where, [self.name_note], show_progress=False)
        self.discard.click(bound.discard, [self.job], self.shown, show_progress=False)
        sent = [self.kept, self.arranging.choice]
        self.send.click(None, sent, **by_script("loraclrSend", sent))
        self.arranging.connect(bound.arrangement, bound.infotext, self.job)
        self.copy.click(None, [self.kept], **by_script("loraclrCopy", [self.kept]))
        self.put_back.click(bound.put_back, [self.job], [self.log, self.use, self.kept], show_progress="minimal").then(
            None, [self.kept], **listed
        )
        self.folder.click(bound.open_folder, [self.job], show_progress=False)
