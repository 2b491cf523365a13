"""What is shown of a comparison of methods: HTML by hand, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...output import figure
from ...solving import METHODS, find_method
from . import inline
from .notes import safe, warned

if TYPE_CHECKING:
    from ...merge import Outcome
    from .comparison import Comparison

_RETENTION = "1 is as its own LoRA makes it, 0 as if it were not there"
#: columns after those of the concepts -> what they mean
_COLUMNS = {
    "Mean": "Of the concepts: by this the methods are ranked",
    "Weakest": "The least that is kept of any concept",
    "Base drift": "How much prompts change that call no concept; 0 is not at all",
    "Rank": "Mean of the layers, as rank auto finds it",
    "Seconds": "Of merging; the first that looks at inputs has those of recording in its own",
}


def view(found: Comparison) -> str:
    """The table, and the pictures of the best below it."""
    best = find_method(found.outcomes[0].made.method)
    # what others do is compared with, and not offered
    how = "choose it under Method" if best.name in METHODS else f"on the command line it is --method {best.name}"
    said = (
        f"{best.label} keeps most here. Nothing of this is held: to have it as a file, merge by it: {how}. Retention says how "
        "near the model's predictions are; look at the pictures too."
    )
    return (
        "<div class='loraclr-result loraclr-compared'>"
        f"<div class='loraclr-heading'>What each method keeps <span class='loraclr-small'>retention of each LoRA: {_RETENTION}"
        f"</span></div>{_table(found)}"
        f"<p class='loraclr-small'>{safe(said)}</p>"
        f"{warned(found.warnings)}{_sheets(found)}</div>"
    )


def _table(found: Comparison) -> str:
    head = "".join(f"<th title='Retention: {_RETENTION}'>{safe(label)}</th>" for label in found.labels)
    head += "".join(f"<th title='{safe(tip)}'>{name}</th>" for name, tip in _COLUMNS.items())
    rows = "".join(map(_row, found.outcomes)) + _failed(found)
    return (
        "<div class='loraclr-wide'><table class='loraclr-table loraclr-methods'>"
        f"<thead><tr><th>Method</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(outcome: Outcome) -> str:
    method, kept = find_method(outcome.made.method), outcome.retention
    cells = [figure(value) for value in (*kept.concepts, kept.mean, kept.weakest, kept.base_drift)]
    cells += [f"{outcome.made.rank:.0f}", f"{outcome.seconds:.0f}"]
    told = "".join(f"<td>{safe(cell)}</td>" for cell in cells)
    return f"<tr><th title='{safe(method.summary)} ({safe(method.source)})'>{safe(method.label)}</th>{told}</tr>"


def _failed(found: Comparison) -> str:
    width = len(found.labels) + len(_COLUMNS)
    return "".join(
        f"<tr class='loraclr-bad'><th>{safe(label)}</th><td colspan='{width}'>{safe(reason)}</td></tr>"
        for label, reason in found.failed.items()
    )


def _sheets(found: Comparison) -> str:
    """The pictures of the best, each under its method."""
    drawn: Sequence[Outcome] = [own for own in found.outcomes if own.made.method in found.sheets]
    return "".join(_sheet(own, found.sheets[own.made.method]) for own in drawn)


def _sheet(outcome: Outcome, file: bytes) -> str:
    label = find_method(outcome.made.method).label
    return (
        f"<figure class='loraclr-sheet'><figcaption><b>{safe(label)}</b> <span class='loraclr-small'>mean "
        f"{figure(outcome.retention.mean)}</span></figcaption>{inline.image(file, f'pictures by {label}')}</figure>"
    )
