"""The fold "Try a prompt" beside Keep: its components. What it does is in trying.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.call_queue import wrap_gradio_gpu_call
from modules.ui_components import FormRow

from .scripting import by_script

NOTHING, BASE, ALL_TAGS = "Nothing", "The base model", "All tags in one prompt"
#: the fields in the order in which their values arrive
FIELDS = ("prompt", "negative", "width", "height", "pictures", "steps", "guidance", "seed", "against")


class TrialFields:
    """Makes the fields, folded, in the order they are seen.

    Attributes:
        fields: by `FIELDS`
        view: the pictures
    """

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        with gr.Accordion("Try a prompt", open=False, elem_id="loraclr_try"):
            with FormRow():
                self._text("prompt", "Prompt", "As in txt2img, without a tag; empty for the one that stands there", 2)
            with gr.Row(elem_id="loraclr_try_row"):
                self.fields["against"] = gr.Dropdown(
                    [NOTHING, BASE, ALL_TAGS],
                    value=NOTHING,
                    label="Beside it",
                    elem_id="loraclr_try_against",
                    tooltip="Draws each seed with this too, and lays a slider between the two; merges kept here are listed",
                )
                self.button = gr.Button(
                    "Try", elem_id="loraclr_try_button", tooltip="Draw with the result, unkept as it is"
                )
            with gr.Accordion("Size, seed and steps", open=False, elem_id="loraclr_try_how"):
                self._figures()
            self.view = gr.HTML("", elem_id="loraclr_tried")
            self.log = gr.HTML("", elem_id="loraclr_tried_log")

    @property
    def shown(self) -> dict[str, Any]:
        """What a result changes here, by the names of `notes.SHOWN`."""
        fields = {f"try_{name}": self.fields[name] for name in ("prompt", "width", "height")}
        return {"tried": self.view, "against": self.fields["against"], **fields}

    def _figures(self) -> None:
        with FormRow():
            self._slider("width", "Width", 64, 2048, 512, 64)
            self._slider("height", "Height", 64, 2048, 512, 64)
        with FormRow():
            self._slider("pictures", "Pictures", 1, 8, 2, 1)
            self._slider("steps", "Steps", 2, 60, 20, 1)
            self._slider("guidance", "CFG scale", 1, 30, 7, 0.5)
        with FormRow():
            self._text("negative", "Negative prompt", "Of these pictures", 1)
            self.fields["seed"] = gr.Number(
                -1,
                label="Seed",
                precision=0,
                elem_id="loraclr_try_seed",
                min_width=90,
                tooltip="Of the first picture, and counted on from there; -1 for another each time",
            )

    def _text(self, name: str, label: str, tip: str, lines: int) -> None:
        self.fields[name] = gr.Textbox("", label=label, lines=lines, elem_id=f"loraclr_try_{name}", tooltip=tip)

    def _slider(self, name: str, label: str, low: float, high: float, value: float, step: float) -> None:
        self.fields[name] = gr.Slider(
            low, high, value=value, step=step, label=label, elem_id=f"loraclr_try_{name}", min_width=90
        )

    def connect(self, attempt: Callable[..., Any], task: Any, job: Any) -> None:
        """The event; `loraclrTry` puts the task's id into the first input."""
        inputs = [task, job, *(self.fields[name] for name in FIELDS)]
        self.button.click(
            wrap_gradio_gpu_call(attempt, extra_outputs=[gr.update()]),
            inputs,
            [self.view, self.log],
            **by_script("loraclrTry", inputs),
            show_progress=False,
        )
