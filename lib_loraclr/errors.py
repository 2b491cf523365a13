"""Errors whose text is meant for the person who made the request."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoraclrError(Exception):
    """A mistake a person can fix: the text names the thing, its value and the remedy, and is shown as it is."""


class Interrupted(Exception):
    """The user asked to stop. Nothing is wrong, nothing is kept."""


def unknown_name(what: str, name: str, known: Iterable[str], *, where: str = "") -> LoraclrError:
    """The error for a name that is not among `known`, with the nearest match and the whole list.

    Args:
        where: what the names belong to, said after the name ("in concept 1")
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    place = f" {where}" if where else ""
    return LoraclrError(f"There is no {what} {name!r}{place}: {hint}known are {', '.join(known)}.")
