"""A merge that somebody asked for, from the queue to what became of its result. What is done with jobs is in jobs.py."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from modules import shared

from ...files import Written
from ...hosts import running
from ...request import MergeRequest
from .clock import TimedProgress
from .comparison import Asked, Comparison
from .making import Result

#: states in which a job holds what the page shows: a result until it is kept or discarded, a comparison until the next is begun
HOLDING = ("finished", "compared")
#: states in which nothing is going on any more
OVER = (*HOLDING, "failed", "interrupted", "kept", "discarded", "put back")


@dataclass
class Job:
    """A merge that somebody asked for.

    Attributes:
        request: what was asked; `lora` of each concept is a path
        names: the LoRAs as the WebUI names them
        draw: whether a picture is drawn
        task: of the tab, that the WebUI shows the progress of; empty for HTTP
        owner: whose it is, and who alone finds it: a page of the tab (`owner_of`), or the credentials of HTTP
        id: what it is asked for by
        state: queued, running, saving, or one of `OVER`
        error: what went wrong, for the person who asked
        result: held from "finished" until it is kept or discarded
        kept: the new LoRA or checkpoint
        written: its files, with what they replaced
        form: what stood in the tab when it was asked for there, as that hands it over; None for HTTP
        former: a finished result that it goes on from, in place of merging afresh
        steps: of that; 0 for as many as are usual
        adds_to: a merged LoRA whose concepts are among those of the request, and which it goes on from
        keeps_as: the name that its result is kept under as soon as it is finished, or the next free one; empty: somebody decides
        compares: methods to compare in place of merging by one, each with its options; none: it merges
        comparison: what came of that, held while it is "compared"
        other: id of the job whose result it goes on from, or of the one that went on from its own
    """

    request: MergeRequest
    names: tuple[str, ...]
    draw: bool = True
    task: str = ""
    owner: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "queued"
    error: str = ""
    result: Result | None = None
    kept: running.InstalledLora | running.InstalledCheckpoint | None = None
    written: Written | None = None
    stop: bool = False
    progress: TimedProgress | None = None
    form: Any = None
    former: Result | None = None
    steps: int = 0
    adds_to: running.InstalledLora | None = None
    keeps_as: str = ""
    compares: Asked = field(default_factory=dict)
    comparison: Comparison | None = None
    other: str = ""

    def __post_init__(self) -> None:
        self.owner = self.owner or owner_of(self.task)

    @property
    def called(self) -> dict[str, str]:
        """Path -> name of its LoRAs."""
        return {concept.lora: name for concept, name in zip(self.request.concepts, self.names, strict=True)}

    @property
    def shows(self) -> bool:
        """Whether it holds something that the page shows."""
        return self.result is not None or self.comparison is not None

    @property
    def went_on_from(self) -> str:
        """Name of the merged LoRA that it goes on from; empty for none."""
        return self.adds_to.name if self.adds_to else ""

    def fraction(self) -> float:
        """How much of it is done, 0..1."""
        if self.state in ("finished", "compared", "saving", "kept", "discarded", "put back"):
            return 1.0
        return self.progress.fraction() if self.progress else 0.0

    def text(self) -> str:
        """The line under the bar."""
        return shared.state.textinfo or "" if self.state == "running" else ""


def owner_of(task: str) -> str:
    """The page that a task of the tab belongs to: `task(PAGE-anything)`; empty where it does not say."""
    match = re.fullmatch(r"task\((\w+)-\w*\)", task)
    return match[1] if match else ""
