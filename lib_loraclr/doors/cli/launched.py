"""What torch's launcher (`torchrun`) says of the process that it started."""

from __future__ import annotations

import os

from ...model import ALONE, Group, Processes


def join() -> Processes:
    """The processes that do the merge together; this one alone where no launcher has started several.

    Raises:
        LoraclrError: they do not find each other
    """
    return Group() if _number("WORLD_SIZE", 1) > 1 else ALONE


def talks() -> bool:
    """Whether this process is the one that writes and talks."""
    return _number("RANK", 0) == 0


def card() -> int | None:
    """Number of the graphics card that is this process's own, where a launcher has started several."""
    return _number("LOCAL_RANK", 0) if _number("WORLD_SIZE", 1) > 1 else None


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise
