"""How long a merge will take: the stages that it will have (`merge.plan_stages`), timed by the pace of this computer (`pace`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...files import is_text_encoder
from ...merge import DRAWN, MERGED_ANEW, Start, plan_comparison, plan_stages
from ...model import Host
from ...output import PreviewOptions, plan_preview
from ...progress import PlannedStage, Stage
from ...recording import make_teachers
from ...request import Concept, MergeRequest
from ...solving import EFFORT, Procedure
from . import pace


def stages(
    request: MergeRequest,
    host: Host,
    *,
    draw: bool,
    start: Start | None = None,
    known: Collection[Stage] = (),
) -> list[PlannedStage]:
    """What a merge will do, as far as it is known before the inputs are read.

    Args:
        start: a finished merge that it goes on from; its factors are not looked at
        known: stages whose results are still there
    """
    procedure = Procedure.of(request)
    refinement = procedure.refinement(len(request.concepts))
    if start is not None:
        labels = [concept.label for concept in request.concepts]
        refinement = start.refinement(refinement, labels)
        known = (*(MERGED_ANEW if start.labels >= {*labels} else ()), *known)
    planned = plan_stages(
        request,
        procedure.method,
        refinement,
        make_teachers(request.concepts, request.prompts),
        layers=_layers(host),
        known=known,
    )
    return [*planned, *drawing(request, draw=draw)]


def _layers(host: Host) -> tuple[int, int]:
    """How many layers of the text encoder(s) and of the UNet a LoRA could change."""
    keys = [key for key, layer in host.layers().items() if not layer.is_vector]
    text = sum(map(is_text_encoder, keys))
    return text, len(keys) - text


def drawing(request: MergeRequest, *, draw: bool) -> list[PlannedStage]:
    """What drawing the picture takes, if it is to be drawn."""
    return [plan_preview(request.concepts, PreviewOptions())] if draw else []


def comparison(
    request: MergeRequest, asked: Mapping[str, Mapping[str, Any]], host: Host, *, draw: bool
) -> list[list[PlannedStage]]:
    """What a comparison of methods will do: each method's stages, and then the pictures of each of the best.

    Args:
        asked: method -> its options
    """
    rounds = plan_comparison(request, asked, layers=_layers(host))
    return [*rounds, *[drawing(request, draw=True)] * (min(DRAWN, len(asked)) if draw else 0)]


def seconds(planned: Iterable[PlannedStage], key: pace.Key) -> dict[Stage, float]:
    """Stage -> seconds expected, in the order of the stages; the whole bar is their sum."""
    each = pace.seconds_per_unit(key)
    return {item.stage: item.amount * each[item.work] for item in planned}


def efforts(
    request: MergeRequest, host: Host, *, draw: bool, start: Start | None = None
) -> dict[str, tuple[float, float]]:
    """Effort of the request's method -> least and most seconds expected; empty where the method has no efforts.

    Args:
        start: as of `stages`; efforts that do not refine, which it cannot be gone on from with, are left out
    """
    key = pace.key_of(request, host)
    asked = {
        effort: replace(request, options={**request.options, EFFORT: effort})
        for effort in Procedure.of(request).method.efforts
    }
    if start is not None:
        asked = {effort: own for effort, own in asked.items() if Procedure.of(own).refinement(len(own.concepts))}
    return {
        effort: span(sum(seconds(stages(own, host, draw=draw, start=start), key).values()), key)
        for effort, own in asked.items()
    }


def placeholder(names: Sequence[str]) -> tuple[Concept, ...]:
    """Concepts to count with before anybody has looked at the rows.

    Args:
        names: of the LoRAs
    """
    return tuple(Concept(name, trigger=name) for name in names)


#: by how much a measurement without a merge may be wrong, either way
_DOUBT = 2.0


def span(total: float, key: pace.Key) -> tuple[float, float]:
    """The least and the most seconds that are to be expected: the same where merges have shown what to expect."""
    return (total, total) if pace.timed(key) else (total / _DOUBT, total * _DOUBT)
