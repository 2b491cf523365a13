"""How far a merge is: its stages, what they take, and how a person stops it. Every door shows this in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .errors import Interrupted


class Stage(Enum):
    """What is being done, in the order of the data flow; the value is what people read."""

    READING = "reading the LoRAs"
    RECORDING = "recording the LoRAs"
    TEXT_INPUTS = "recording the text encoder"
    TEXT_LAYERS = "merging the text encoder"
    UNET_INPUTS = "recording the UNet"
    UNET_LAYERS = "merging the UNet"
    HOLDING_BACK = "recording held-back paths"
    REFINING = "refining"
    CUTTING = "finding the rank"
    TESTING = "recording what to measure on"
    MEASURING = "measuring what is left"
    DRAWING = "drawing the preview"


class Work(Enum):
    """Kinds of work, each of which has a pace of its own on a computer."""

    EVALUATION = "evaluation"
    """One sample through the model."""
    BACKWARD = "backward"
    """One sample of a refinement step, forward and back."""
    LAYER = "layer"
    """One layer of one LoRA, read or merged."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage that is to come, and what it will take.

    Attributes:
        stage: which
        units: of progress, as `Progress.start` will be told
        work, amount: which kind of work it is, and how much of that
    """

    stage: Stage
    units: int
    work: Work
    amount: float


class Progress:
    """Silent progress, and the base of those that show it.

    A merge is a sequence of stages, each of a known number of units; `advance` is called at least once per evaluation of the
    model, which is as long as a person waits for an interrupt to be heard.
    """

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """These stages are to come, in this order; called once, before the first that takes long."""

    def start(self, stage: Stage, total: int) -> None:
        """A stage begins that takes `total` units."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` says at what (a concept, a layer).

        Raises:
            Interrupted: the user asked to stop
        """
        if self.interrupted():
            raise Interrupted

    def found(self, units: int, note: str = "") -> None:
        """`units` more are done that took no time: what they make was kept from a former merge.

        Raises:
            Interrupted: the user asked to stop
        """
        self.advance(units, note)

    def log(self, line: str) -> None:
        """One line about how the merge is going."""

    def interrupted(self) -> bool:
        """Whether the user asked to stop."""
        return False
