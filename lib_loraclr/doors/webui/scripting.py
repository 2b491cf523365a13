"""Functions of javascript/loraclr.js for the tab's events, as the gradio at hand takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr


def by_script(function: str, inputs: Sequence[Any]) -> dict[str, str]:
    """A function of javascript/loraclr.js for an event, as this gradio wants it named: 3 calls it `_js`, and 4 `js`.

    gradio gives it the values of the outputs too, after those of the inputs, and would send them to the server where they come
    back: with pictures and tables among them that is much.

    Args:
        inputs: of the event
    """
    call = f"(...values) => {function}(...values.slice(0, {len(inputs)}))"
    return {"_js" if gr.__version__.startswith("3.") else "js": call}
