"""Compare methods, under Advanced: its components. What it does is in comparing.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from modules.call_queue import wrap_gradio_gpu_call
from modules.ui_components import DropdownMulti, FormRow

from ...solving import METHODS
from .scripting import by_script

if TYPE_CHECKING:
    from .tab import _Actions


class ComparingFields:
    """Makes the list of methods and the button; what others do instead is listed once the tab is looked at.

    Attributes:
        methods: to compare; none for all
    """

    def __init__(self) -> None:
        with FormRow(elem_id="loraclr_compare_row"):
            self.methods = DropdownMulti(
                label="Methods to compare (none: all)",
                choices=[method.label for method in METHODS.values()],
                elem_id="loraclr_compare_methods",
                scale=3,
                tooltip="Ours and what others do, each at its defaults, with the effort chosen above where it has efforts",
            )
            self.button = gr.Button(
                "Compare methods",
                elem_id="loraclr_compare",
                min_width=120,
                tooltip="Merges the LoRAs above by each from one recording, shows what each keeps, and draws the best three; no "
                "merge is held",
            )
        self.note = gr.HTML("", elem_id="loraclr_compare_note")

    def connect(self, bound: _Actions, inputs: Sequence[Any], shown: Sequence[Any], opened: Callable[..., Any]) -> None:
        """The events; `loraclrSubmit` puts the task's id and the table into the first inputs.

        Args:
            inputs: task, table, picker, job, whether pictures are drawn, and every field
            shown: the components of the result column
            opened: the event of the tab being looked at
        """
        asked = [*inputs, self.methods]
        self.button.click(
            wrap_gradio_gpu_call(bound.compare, extra_outputs=[gr.update() for _ in shown[1:]]),
            asked,
            list(shown),
            **by_script("loraclrSubmit", asked),
            show_progress=False,
        )
        opened(bound.comparable, [], [self.methods], show_progress=False)

    def follow(self, bound: _Actions, after: Callable[..., Any], inputs: Sequence[Any]) -> None:
        """How long it takes is said anew.

        Args:
            after: the event that changes it
            inputs: picker, whether pictures are drawn, and every field
        """
        after(bound.comparing_takes, [*inputs, self.methods], [self.note], show_progress=False)
