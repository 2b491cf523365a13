"""What merges keep on the disk, under Advanced: how much it is, and a button that empties it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tab import _Actions


class WorkFields:
    """Makes the line and its button."""

    def __init__(self) -> None:
        with gr.Row(elem_id="loraclr_work"):
            self.told = gr.HTML("", elem_id="loraclr_work_told")
            self.empty = gr.Button(
                "Empty",
                elem_id="loraclr_work_empty",
                min_width=90,
                scale=0,
                tooltip="Deletes what merges recorded and how far they were; results, and what was kept of them, stay",
            )

    def connect(self, bound: _Actions, *after: Callable[..., Any]) -> None:
        """The events.

        Args:
            after: events after which there may be more, or less, than before
        """
        for event in after:
            event(bound.work, [], [self.told], show_progress=False)
        self.empty.click(bound.empty_work, [], [self.told], show_progress=False)
