"""How long each kind of work takes, by the seconds of one evaluation and what merges took on devices of that kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..progress import Work

#: kind of device -> what `python dev.py bench card --keep-pace` saw on one; those that were never tried are not in it
SEEN = Path(__file__).with_name("paces.json")


@dataclass(frozen=True)
class Pace:
    """What each kind of work costs, in measured evaluations of one sample; except for layers, in seconds.

    What stands here is guessed, for devices on which nothing was ever seen.

    Attributes:
        evaluation: an evaluation of one sample during a merge
        backward: a sample of a refinement step, forward and back, recomputation included
        layer: seconds per layer and LoRA of a method that records
    """

    evaluation: float = 1.0
    backward: float = 4.0
    layer: float = 0.01

    def seconds(self, evaluation: float) -> dict[Work, float]:
        """Kind of work -> seconds of one unit of it.

        Args:
            evaluation: seconds of one sample through the model, as `seconds_per_sample` measures them
        """
        return {
            Work.EVALUATION: self.evaluation * evaluation,
            Work.BACKWARD: self.backward * evaluation,
            Work.LAYER: self.layer,
        }

    @classmethod
    def of(cls, seconds: Mapping[Work, float], evaluation: float) -> Pace:
        """The other way round: by what a merge took.

        Args:
            seconds: of one unit of each kind of work; of a kind that the merge had none of, the guess stands
            evaluation: as of `seconds`
        """
        units = {kind: 1.0 if kind is Work.LAYER else evaluation for kind in seconds}
        return cls(**{kind.value: seconds[kind] / units[kind] for kind in seconds})


def usual_pace(device: torch.device | str) -> Pace:
    """What is to be expected of a device before anything was merged on it."""
    seen = json.loads(SEEN.read_text("utf-8")).get(torch.device(device).type, {})
    return Pace(**{kind.value: seen[kind.value] for kind in Work if kind.value in seen})


def keep_pace(device: str, pace: Pace, seen_on: str) -> None:
    """Make this what is expected of devices of a kind.

    Args:
        seen_on: which device, model and torch
    """
    seen = json.loads(SEEN.read_text("utf-8"))
    told = {kind.value: float(f"{getattr(pace, kind.value):.3g}") for kind in Work}
    seen[torch.device(device).type] = {**told, "seen on": seen_on}
    SEEN.write_text(json.dumps(seen, indent=2) + "\n", "utf-8")
