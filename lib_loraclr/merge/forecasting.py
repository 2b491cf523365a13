"""What a merge would do and take, without doing it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from ..files import is_text_encoder
from ..model import Host
from ..progress import PlannedStage, Stage
from ..recording import BATCH, evaluated, load_input, make_teachers, served_layers
from ..request import MergeRequest
from ..solving import Procedure
from .examination import Examination, examine, merged_keys
from .merging import completed
from .needs import MemoryNeeds, memory_needs
from .pace import Pace, usual_pace
from .stage_plan import plan_stages
from .start import Start


@dataclass(frozen=True)
class Forecast:
    """What a merge would do and take.

    Attributes:
        request: with all that the files say where it says nothing
        examination: what stands in its way, and what a person should know
        memory: what it takes beside the checkpoint
        stages: what it does, in its order
        pace: what each kind of work is expected to take on the model's device
    """

    request: MergeRequest
    examination: Examination
    memory: MemoryNeeds
    stages: tuple[PlannedStage, ...]
    pace: Pace

    def seconds(self, evaluation: float) -> dict[Stage, float]:
        """How long each stage takes.

        Args:
            evaluation: seconds of one sample through the model (`seconds_per_sample`)
        """
        each = self.pace.seconds(evaluation)
        return {item.stage: item.amount * each[item.work] for item in self.stages}


def forecast(request: MergeRequest, host: Host, start: Start | None = None) -> Forecast:
    """Look at a merge without doing it; of the LoRAs only the shapes are kept.

    Args:
        start: that it would go on from

    Raises:
        LoraclrError: a file that cannot be read or does not fit, or something in the request; what else stands in the way is in
            the examination
    """
    request.check()
    procedure = Procedure.of(request)
    inputs = [load_input(concept, host, shapes_only=True) for concept in request.concepts]
    request = completed(request, inputs, host)
    whole = procedure.refinement(len(inputs))
    refinement = start.refinement(whole, [lora.concept.label for lora in inputs]) if start else whole
    keys = merged_keys(inputs)
    serves = served_layers(host, keys) if procedure.method.records else None
    layers = [key for key in keys if serves is None or key in serves]
    text = sum(map(is_text_encoder, layers))
    teachers = make_teachers([lora.concept for lora in inputs], request.prompts)
    planned = plan_stages(request, procedure.method, refinement, teachers, layers=(text, len(layers) - text))
    return Forecast(
        request,
        examine(request, inputs, host, serves),
        memory_needs(request, inputs, host, refines=refinement is not None),
        tuple(planned),
        usual_pace(host.device),
    )


@torch.no_grad()
def seconds_per_sample(host: Host, height: int, width: int) -> float:
    """How long an evaluation of one sample takes, in a batch that even a small card holds.

    The first run, which loads kernels, is not counted.

    Args:
        height, width: of the picture in pixels
    """
    side = host.pixels_per_latent
    x = torch.zeros(BATCH // 2, host.latent_channels, height // side, width // side, device=host.device)
    t = torch.full((len(x),), 500, device=host.device)
    conditioning = host.encode(["a photo"] * len(x))
    taken = []
    for _ in range(4):
        begun = time.monotonic()
        evaluated(host, x, t, conditioning).sum().item()
        taken.append(time.monotonic() - begun)
    return statistics.median(taken[1:]) / len(x)
