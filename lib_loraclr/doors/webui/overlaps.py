"""Which concepts will be in each other's way, as Check tells it: about ten seconds of the model, or why they are not taken."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from modules import shared

from ...hosts import running
from ...merge import Overlap, measure_overlap, overlap_evaluations
from ...model import Host
from ...progress import Work
from ...request import MergeRequest
from . import pace
from .notes import duration, safe

#: seconds that Check may take for it: with so many paths, and at most
_PATHS, _WELCOME, _MOST = 2, 12.0, 30.0
#: least share at which a concept is moved so -> the word for it
LEVELS = ((0.8, "much"), (0.3, "somewhat"), (0.0, "hardly"))
#: what was measured last: what was asked -> what was found
_latest: dict[Hashable, Overlap] = {}


def look(request: MergeRequest, host: Host, key: pace.Key) -> tuple[Overlap | None, str]:
    """What was measured; or None, and why it was not.

    Args:
        request: sized, its `lora` are paths; it can be merged
        host: whose pace is known

    Raises:
        LoraclrError: an input that cannot be read any more
    """
    if len(request.concepts) < 2:
        return None, ""
    asked = _asked(request, host)
    if asked not in _latest:
        each = pace.seconds_per_unit(key)[Work.EVALUATION]
        paths = _PATHS if each * overlap_evaluations(request, _PATHS) <= _WELCOME else 1
        expected = each * overlap_evaluations(request, paths)
        if expected > _MOST:
            return None, f"Who will be in whose way was not looked at: that would take {duration(expected)} here."
        if shared.state.job:
            return None, "Who will be in whose way was not looked at, as a picture is being made: check again after it."
        with running.session(job="LoRACLR check") as opened:
            found = measure_overlap(request, opened, paths=paths)
        _latest.clear()
        _latest[asked] = found
    return _latest[asked], ""


def _asked(request: MergeRequest, host: Host) -> Hashable:
    """All that it goes by; a file that was written anew is another."""
    times = tuple(Path(concept.lora).stat().st_mtime_ns for concept in request.concepts)
    return request.concepts, times, request.prompts, request.recording, request.seed, str(host.checkpoint_path)


def level(share: float) -> str:
    """In a word how far a concept is moved."""
    return next(word for least, word in LEVELS if share >= least)


def sentence(overlap: Overlap) -> str:
    """What to make of the table."""
    if overlap.worst is None:
        return ""
    disturbed, by = overlap.worst
    share = overlap.shares[overlap.worst]
    if level(share) == "hardly":
        return "They hardly touch each other: all tags in one prompt would do nearly as well as a merge."
    told = f"{disturbed} needs the merge most: with both tags in one prompt, {by} {_lost(share)}."
    back = overlap.shares.get((by, disturbed), 0.0)
    return told + (f" Of {by}, {disturbed} {_lost(back)}." if level(back) == "much" else "")


def _lost(share: float) -> str:
    """What that much does, in words."""
    return "leaves nothing" if share >= 1 else f"leaves about {1 - share:.0%}"


def view(overlap: Overlap | None, note: str) -> str:
    """The table: who is moved has a row, by whom a column. Or why there is none."""
    if overlap is None or not overlap.shares:
        return f"<p class='loraclr-small'>{safe(note)}</p>" if note else ""
    labels = [label for label in overlap.labels if any(label in pair for pair in overlap.shares)]
    head = "".join(f"<th>{safe(label)}</th>" for label in labels)
    rows = "".join(
        f"<tr><th>{safe(moved)}</th>{''.join(_cell(overlap, moved, by) for by in labels)}</tr>" for moved in labels
    )
    return (
        "<div class='loraclr-heading'>In each other's way <span class='loraclr-small'>how far the column's tag moves what the "
        "row's concept draws; 1 is as far as that does itself</span></div>"
        f"<div class='loraclr-wide'><table class='loraclr-table loraclr-together'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div><p class='loraclr-small'>{safe(sentence(overlap))}</p>"
    )


def _cell(overlap: Overlap, moved: str, by: str) -> str:
    share = overlap.shares.get((moved, by))
    if share is None:
        return "<td></td>"
    word = level(share)
    return f"<td class='loraclr-moved-{word}' title='{safe(moved)} is moved {word} by {safe(by)}'>{share:.1f}</td>"
