"""What is seen of Add to this one: which merged LoRA is added to, above the rows. What it does is in adding.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from .notes import safe
from .scripting import by_script

if TYPE_CHECKING:
    from .tab import _Actions

#: among the tab's fields: the merged LoRA's name; empty for a merge from nothing
FIELD = "add_to"


class AddingFields:
    """Makes the line, which is empty unless something is added to, and what the browser presses.

    Attributes:
        field: name of the merged LoRA
        kept: the button beside a merge that was kept, in a place of its own
    """

    def __init__(self) -> None:
        self.view = gr.HTML("", elem_id="loraclr_adding")
        self.field = gr.Textbox("", visible=False, elem_id="loraclr_add_to")
        self._wanted = gr.Textbox(visible=False, elem_id="loraclr_add_to_wanted")
        self._button = gr.Button(visible=False, elem_id="loraclr_add_to_button")
        self._ended = gr.Button(visible=False, elem_id="loraclr_add_to_ended")

    def kept_button(self, *, min_width: int) -> None:
        """Among what can be done with a merge that was kept.

        Args:
            min_width: in pixels
        """
        self.kept = gr.Button(
            "Add to this one",
            elem_id="loraclr_add_to_kept",
            min_width=min_width,
            tooltip="One more concept: fills the form with what is in this LoRA; what is chosen besides is added to it, in fewer "
            "steps than all of them take from nothing",
        )

    def connect(self, bound: _Actions, picker: Any, known: Any, outputs: Sequence[Any]) -> list[Any]:
        """The events; `loraclrAddTo` says which merged LoRA.

        Args:
            known: what the browser knows of a merge that was kept, as JSON
            outputs: picker, rows, message, and every field

        Returns:
            the events that fill the form, after which rows are drawn
        """
        asked = [self._wanted, picker]
        filled = [
            self._button.click(
                bound.add_to, asked, list(outputs), **by_script("loraclrAddTo", asked), show_progress=False
            ),
            self.kept.click(bound.add_to_kept, [known, picker], list(outputs), show_progress=False),
        ]
        filled[1].then(None, [self.field], **by_script("loraclrToForm", [self.field]))
        self._ended.click(bound.add_to_nothing, [], [self.field, self.view], show_progress=False)
        return filled

    def follow(self, bound: _Actions, after: Callable[..., Any]) -> None:
        """Say what is added to after an event that may have changed it."""
        after(bound.adding, [self.field], [self.view], show_progress=False)


def view(name: str, concepts: Sequence[str]) -> str:
    """The line.

    Args:
        name: of the merged LoRA
        concepts: that are in it
    """
    return (
        "<div class='loraclr-note' role='status'><button type='button' class='loraclr-close loraclr-add-to-nothing' "
        "title='Merge afresh instead' aria-label='Merge afresh instead'>×</button>"
        f"Adds to <b>{safe(name)}</b>, and goes on from its {safe(', '.join(concepts))}: choose what is to be added.</div>"
    )
