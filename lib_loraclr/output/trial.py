"""A prompt that a person tries on a result that is no file yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import LoraclrError
from ..model import Deltas, Host
from ..progress import PlannedStage, Progress, Stage, Work
from ..request import LARGEST_SEED
from .drawing import Drawing, draw, units_of

#: pictures of one trial, at most
MOST_PICTURES = 16
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class Trial:
    """A prompt that a person tries, one picture a seed.

    Attributes:
        prompt: as it would stand in txt2img, without the tags of LoRAs: what is drawn with is given beside it
        seeds: of the pictures
        drawing: how they are drawn
    """

    prompt: str
    seeds: tuple[int, ...]
    drawing: Drawing

    @classmethod
    def of(cls, prompt: str, seed: int, pictures: int, drawing: Drawing) -> Trial:
        """Pictures of seeds that follow each other, as the WebUI counts them in a batch.

        Raises:
            LoraclrError: a prompt, seed or number of pictures that cannot be
        """
        prompt = " ".join(prompt.split())
        if not prompt:
            raise LoraclrError("There is no prompt to try: write one.")
        if tag := _TAG.search(prompt):
            raise LoraclrError(
                f"The prompt has a tag in it ({tag[0]}): take it out, for the merge is there without one."
            )
        if not 1 <= pictures <= MOST_PICTURES:
            raise LoraclrError(f"The number of pictures is {pictures}: give one from 1 to {MOST_PICTURES}.")
        if not 0 <= seed <= LARGEST_SEED - pictures:
            raise LoraclrError(f"The seed is {seed}: give a whole number from 0 to {LARGEST_SEED - pictures}.")
        drawing.check()
        return cls(prompt, tuple(range(seed, seed + pictures)), drawing)


def plan_trial(trial: Trial, *, models: int) -> PlannedStage:
    """What trying takes.

    Args:
        models: with how many sets of deltas each picture is drawn
    """
    units, pictures = models * units_of(len(trial.seeds), trial.drawing.steps), models * len(trial.seeds)
    return PlannedStage(Stage.DRAWING, units, Work.EVALUATION, 2 * trial.drawing.steps * pictures)


def draw_trial(trial: Trial, models: Sequence[Deltas], host: Host, progress: Progress) -> list[list[Image.Image]]:
    """The pictures of a trial, for each of several sets of deltas; of the same seeds, so that they can be compared.

    Raises:
        Interrupted: the user asked to stop
    """
    progress.start(Stage.DRAWING, plan_trial(trial, models=len(models)).units)
    prompts = [trial.prompt] * len(trial.seeds)
    return [draw(host, deltas, prompts, trial.seeds, trial.drawing, progress) for deltas in models]
