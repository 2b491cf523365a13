"""Pictures of the loaded model with some deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import LoraclrError
from ..model import Deltas, Host
from ..progress import Progress
from ..recording import BATCH, sample

#: figures of `Drawing` -> least and most
_RANGES = {"height": (64, 2048), "width": (64, 2048), "steps": (2, 150), "guidance": (0.0, 30.0)}


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn: by DDIM, as what a merge learns from is (`recording.sample`).

    Attributes:
        height, width: in pixels
        steps: of each picture
        guidance: classifier-free guidance
        negative: the negative prompt
    """

    height: int
    width: int
    steps: int = 16
    guidance: float = 5.0
    negative: str = ""

    def check(self) -> None:
        """Check the figures' ranges.

        Raises:
            LoraclrError: a figure is out of range
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise LoraclrError(f"The {name} of the pictures is {value}: give a number from {low} to {high}.")
        for name in ("height", "width"):
            if getattr(self, name) % 64:
                raise LoraclrError(f"The {name} of the pictures is {getattr(self, name)}: give a multiple of 64.")


def draw(
    host: Host,
    deltas: Deltas,
    prompts: Sequence[str],
    seeds: Sequence[int],
    drawing: Drawing,
    progress: Progress,
) -> list[Image.Image]:
    """One picture per prompt and seed of the model with these deltas; the model is left as it was."""
    with host.apply(deltas):
        latents = sample(
            host,
            prompts,
            seeds,
            size=(drawing.height, drawing.width),
            steps=drawing.steps,
            guidance=drawing.guidance,
            negative=drawing.negative,
            tick=progress.advance,
        )
    return host.decode(latents)


def units_of(pictures: int, steps: int) -> int:
    """Of progress, that drawing so many pictures in one call takes: the model is asked for several at a time."""
    return steps * -(-pictures // BATCH)
