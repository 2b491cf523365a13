"""What the tab says before and beside any result: short notes as HTML, every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

#: the components of the result column, in the order of the events' outputs; to the last the WebUI adds the time taken
SHOWN = (
    *("view", "picture", "advice", "decide", "use", "replace", "name", "copy"),
    *("other", "tried", "try_prompt", "try_width", "try_height", "against", "job", "log"),
)

WELCOME = (
    "<div class='loraclr-welcome'><p>The result appears here, before anything is written.</p>"
    "<ol><li>Choose LoRAs above; \u2199\ufe0f takes those of txt2img's prompt.</li>"
    "<li><b>Check</b> says what would be merged and how long it takes.</li>"
    "<li><b>Merge</b>, look at what survived, then keep it or discard it.</li></ol></div>"
)


def error(text: str) -> str:
    return f"<div class='loraclr-note loraclr-error' role='alert'>{safe(text)}</div>"


def note(text: str) -> str:
    return f"<div class='loraclr-note'>{safe(text)}</div>"


def warned(warnings: Iterable[str]) -> str:
    """Warnings as a list; nothing where there are none."""
    items = "".join(f"<li>{safe(warning)}</li>" for warning in warnings)
    return f"<ul class='loraclr-warnings'>{items}</ul>" if items else ""


def passing(text: str, kind: str = "") -> str:
    """A note that can be sent away, for nothing else does."""
    button = "<button type='button' class='loraclr-close' title='Close' aria-label='Close'>×</button>"
    return f"<div class='loraclr-note {safe(kind)}' role='status'>{button}{safe(text)}</div>"


def duration(seconds: float) -> str:
    """In words, no more precise than it is."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"{round(seconds / 10) * 10} s"
    if seconds < 3600:
        return f"{max(2, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def span(least: float, most: float) -> str:
    """From one time to another in words; one time where both are said alike."""
    low, high = duration(least), duration(most)
    if low == high:
        return low
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def safe(value: object) -> str:
    """A text as HTML shows it; half of a character would end the answer to a browser in which it stands."""
    return html.escape(str(value).encode(errors="replace").decode(), quote=True)
