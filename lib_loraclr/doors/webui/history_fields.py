"""The fold "History": the merges that were made here, to be looked at and to begin from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from .notes import safe
from .scripting import by_script

if TYPE_CHECKING:
    from .history_log import Entry

#: merges that are shown
_SHOWN = 30


class HistoryFields:
    """Makes the fold, which is filled when the tab is opened."""

    def __init__(self) -> None:
        with gr.Accordion("History", open=False, elem_id="loraclr_history"):
            self.view = gr.HTML("", elem_id="loraclr_history_view")
        self.wanted = gr.Textbox(visible=False, elem_id="loraclr_history_wanted")
        self.button = gr.Button(visible=False, elem_id="loraclr_history_again")

    def connect(self, fill: Callable[..., Any], outputs: Sequence[Any]) -> Any:
        """The event; `loraclrHistory` says which merge.

        Returns:
            the event, after which rows are drawn
        """
        return self.button.click(
            fill, [self.wanted], list(outputs), **by_script("loraclrHistory", [self.wanted]), show_progress=False
        )


def view(entries: Sequence[Entry], pictures: Mapping[str, str | None]) -> str:
    """The merges as a table.

    Args:
        pictures: id of what is still installed -> where the WebUI serves its picture; None where it has none
    """
    if not entries:
        return "<p class='loraclr-small'>Merges that are kept are listed here.</p>"
    rows = "".join(_row(entry, pictures) for entry in entries[:_SHOWN])
    more = f"<p class='loraclr-small'>The latest {_SHOWN} of {len(entries)}.</p>" if len(entries) > _SHOWN else ""
    return f"<div class='loraclr-history'>{rows}</div>{more}"


def _row(entry: Entry, pictures: Mapping[str, str | None]) -> str:
    url = pictures.get(entry.id)
    image = f"<img class='loraclr-thumb' src='{safe(url)}' alt='' loading='lazy'>" if url else ""
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.date))
    kind = " · checkpoint" if entry.save_as == "checkpoint" else ""
    concepts = ", ".join(f"{name} {share:.0%}" if share is not None else name for name, share in entry.figures.items())
    gone = "" if entry.save_as == "checkpoint" or entry.id in pictures else " · deleted"
    tip = "Fill the form with what this merge was asked for"
    return (
        f"<div class='loraclr-made'>{image or '<span class=loraclr-thumb></span>'}"
        f"<div><b>{safe(entry.name)}</b> <span class='loraclr-small'>{safe(date)}{kind}{gone} · {safe(entry.checkpoint)}</span>"
        f"<div class='loraclr-small'>{safe(concepts)}</div></div>"
        f"<button type='button' class='loraclr-again' data-entry='{safe(entry.id)}' title='{tip}'>Fill in</button></div>"
    )
