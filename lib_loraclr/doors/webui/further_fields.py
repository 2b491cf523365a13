"""The fold "Refine further" beside Keep, and the way back to the result before. What it does is in further.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from modules.call_queue import wrap_gradio_gpu_call
from modules.ui_components import FormRow

from .scripting import by_script

if TYPE_CHECKING:
    from .tab import _Actions


class FurtherFields:
    """Makes the fold and the button beside it.

    Attributes:
        other: shows the result that this one went on from, or that went on from it
    """

    def __init__(self) -> None:
        with gr.Accordion("Refine further", open=False, elem_id="loraclr_further"), FormRow():
            self.steps = gr.Number(
                0,
                label="Steps",
                precision=0,
                elem_id="loraclr_further_steps",
                min_width=90,
                tooltip="At the model's output; 0 for a third of what the merge itself took",
            )
            self.refine = gr.Button(
                "Refine",
                elem_id="loraclr_further_button",
                tooltip="Goes on from this result, with the importance that the rows have now; this result stays, and either can "
                "be kept",
            )
        self.other = gr.Button(
            "Show the other result",
            visible=False,
            elem_id="loraclr_other",
            tooltip="The result before or after it was refined further; each can be kept or discarded",
        )

    def connect(self, bound: _Actions, inputs: Sequence[Any], job: Any, shown: Sequence[Any]) -> None:
        """The events; `loraclrFurther` puts the task's id and the table into the first inputs.

        Args:
            inputs: task, table, job, and whether pictures are drawn
            shown: the components of the result column
        """
        asked = [*inputs, self.steps]
        self.refine.click(
            wrap_gradio_gpu_call(bound.refine, extra_outputs=[gr.update() for _ in shown[1:]]),
            asked,
            list(shown),
            **by_script("loraclrFurther", asked),
            show_progress=False,
        )
        self.other.click(bound.other, [job], list(shown), show_progress=False)
