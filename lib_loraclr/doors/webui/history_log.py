"""The log of the merges that were kept: read with suspicion, for people edit files and newer versions write other things."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...request import MergeRequest

#: seconds from 1970 to the year 3000, the last that every system can tell the date of
_LATEST = 32_503_680_000


@dataclass(frozen=True)
class Entry:
    """A merge that was kept.

    Attributes:
        id: of the job that made it, or the name of a file that is not in the log
        name: of the file, without folder and extension
        date: seconds since 1970
        save_as: "lora", "full" or "checkpoint"
        checkpoint: that it was made on
        figures: concept -> share of unseen points at which it is recognised; None where nobody looked
        recipe: the request, its LoRAs by their files' names; empty where the file has it
    """

    id: str
    name: str
    date: float
    save_as: str
    checkpoint: str
    figures: dict[str, float | None]
    recipe: dict[str, Any] = field(default_factory=dict)

    def request(self) -> MergeRequest:
        """What was asked, by its recipe.

        Raises:
            LoraclrError: the recipe cannot be read
        """
        return MergeRequest.from_dict(self.recipe)


def read(text: str) -> list[Entry]:
    """The entries of a log, without those that are not of this form.

    Raises:
        ValueError: the text is no log
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error
    if not isinstance(values, list):
        raise ValueError("it is no list")
    return [entry for entry in map(_entry, values) if entry is not None]


def _entry(values: Any) -> Entry | None:
    try:
        entry = Entry(**values)
    except TypeError:  # a name that is missing, or unknown
        return None
    texts = (entry.id, entry.name, entry.save_as, entry.checkpoint)
    well = (
        all(isinstance(text, str) for text in texts)
        and _within(entry.date, _LATEST)
        and isinstance(entry.figures, dict)
        and all(share is None or _within(share, 1) for share in entry.figures.values())
        and isinstance(entry.recipe, dict)
    )
    return entry if well else None


def _within(value: Any, most: float) -> bool:
    """Whether it is a number from 0 to the most; which NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def write(entries: Sequence[Entry]) -> str:
    """The log of these entries."""
    return json.dumps([asdict(entry) for entry in entries], indent=1)
