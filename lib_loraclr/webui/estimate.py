"""How long a merge will take, and what it needs.

Stages are counted in evaluations of one sample, from the same plans that the merge follows (`stages.py`); the pace of an
evaluation is measured once per checkpoint and size, and set right by every merge that ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from modules import sd_models, shared

from ..hosts import a1111
from ..hosts.base import Host
from ..methods import find_method
from ..methods.contrastive import EFFORTS
from ..options import parse_options
from ..preview import PreviewOptions
from ..refinement import CHECKS
from ..request import Concept, MergeRequest
from ..sampling import BATCH
from ..stages import (
    HELD_BACK_KEPT,
    HELD_BACK_PATHS,
    HELD_BACK_STEPS,
    RECORDED_POINTS,
    SCALE_POINTS,
    TEST_PATHS,
    TEST_STEPS,
)
from ..teachers import PILOT, Classroom, Teacher, make_teachers

#: what a sample costs in the refinement, forward and back, in evaluations; recomputation included
_BACKWARD = 4.0
#: what encoding a prompt costs, in evaluations
_ENCODING = 0.1
#: seconds per layer, LoRA and method that records, until a merge has shown it
_LAYER = 0.01
_LAYER_STAGES = ("merging the text encoder", "merging the UNet")


@dataclass
class Pace:
    """Attributes:
    evaluation: seconds per sample of the whole model
    backward: seconds per sample of a refinement step
    layer: seconds per layer and LoRA
    """

    evaluation: float
    backward: float
    layer: float = _LAYER


_paces: dict[tuple[str, int, int], Pace] = {}


def stages(request: MergeRequest, host: Host, *, draw: bool) -> dict[str, float]:
    """Stage -> seconds expected, in the order of the stages; the whole bar is their sum."""
    pace = _paces.get(_key(request, host)) or Pace(1.0, _BACKWARD)
    return _seconds(request, len(host.layers()), pace, draw=draw)


def _seconds(request: MergeRequest, layers: int, pace: Pace, *, draw: bool) -> dict[str, float]:
    found = {}
    for stage, (kind, count) in _work(request, layers, draw=draw).items():
        found[stage] = count * getattr(pace, kind)
    return found


def _work(request: MergeRequest, layers: int, *, draw: bool) -> dict[str, tuple[str, float]]:
    """Stage -> what it is made of and how much of that."""
    method = find_method(request.method)
    options = parse_options(method.options, request.options, f"method {method.name}")
    teachers = make_teachers(request.concepts, request.prompts)
    number, recording = len(request.concepts), request.recording

    def learning(effects: int | None = None, **plan: int) -> float:
        return sum(Classroom.evaluations(teacher, **plan, effects=effects) for teacher in teachers)

    own = {"paths": recording.paths, "steps": recording.steps, "keep": recording.steps}
    points = recording.paths * recording.steps
    per_layer = layers * number / 2
    work: dict[str, tuple[str, float]] = {}
    if method.records:
        work["recording the LoRAs"] = "evaluation", learning(SCALE_POINTS, **own)
        work["recording the text encoder"] = "evaluation", _ENCODING * len(teachers) * recording.paths
    work[_LAYER_STAGES[0]] = "layer", (0.2 if method.records else 0.02) * per_layer
    if method.records:
        work["recording the UNet"] = "evaluation", len(teachers) * min(points, RECORDED_POINTS)
    work[_LAYER_STAGES[1]] = "layer", (0.8 if method.records else 0.08) * per_layer
    refinement = method.refinement(options, number)
    if refinement:
        held = {"paths": HELD_BACK_PATHS, "steps": HELD_BACK_STEPS, "keep": HELD_BACK_KEPT}
        if refinement.terms.negative:
            work["comparing the concepts"] = "evaluation", number * (points + max(0, number - 2) * PILOT)
        work["recording held-back paths"] = "evaluation", learning(**held)
        work["refining"] = "backward", refinement.steps * refinement.batch_size + (CHECKS + 1) * len(teachers) * 2
    test = {"paths": TEST_PATHS, "steps": TEST_STEPS, "keep": TEST_STEPS}
    tested = TEST_PATHS * TEST_STEPS
    work["recording paths to measure on"] = "evaluation", learning(**test)
    work["measuring retention"] = "evaluation", tested * (2 * len(teachers) + _plain(teachers) * number)
    if draw:
        drawn = PreviewOptions()
        pictures = 4 * number + 4 * min(drawn.pairs, number // 2)
        work["drawing the preview"] = "evaluation", 2 * drawn.steps * pictures
    return work


def _plain(teachers: list[Teacher]) -> int:
    return sum(teacher.concept is None for teacher in teachers)


def learn(request: MergeRequest, host: Host, taken: Mapping[str, float], *, draw: bool) -> None:
    """Set the pace right by a merge that ended: stage -> seconds it took."""
    work = _work(request, len(host.layers()), draw=draw)
    pace = _paces.setdefault(_key(request, host), Pace(1.0, _BACKWARD))
    # "refining" may end early, when nothing improves any more
    for kind, stages_of_kind in (
        ("evaluation", [s for s, (k, _) in work.items() if k == "evaluation"]),
        ("backward", []),
        ("layer", _LAYER_STAGES),
    ):
        count = sum(work[stage][1] for stage in stages_of_kind if stage in taken)
        seconds = sum(taken[stage] for stage in stages_of_kind if stage in taken)
        if count and seconds:
            setattr(pace, kind, seconds / count)
    if "refining" in taken and taken["refining"] > 0:
        pace.backward = max(pace.backward * 0.5, min(pace.backward * 2, taken["refining"] / work["refining"][1]))
    else:
        pace.backward = _BACKWARD * pace.evaluation


def _key(request: MergeRequest, host: Host) -> tuple[str, int, int]:
    recording = request.recording
    return host.checkpoint, recording.height or host.default_size, recording.width or host.default_size


def probe(request: MergeRequest, *, wait: bool) -> Host | None:
    """The host, its pace measured if it was not yet; None if the model is busy and `wait` is False.

    Raises:
        LoraclrError: as `a1111.session`
    """
    model = sd_models.model_data.sd_model
    if model is not None:
        host = a1111.A1111Host(model)
        if _key(request, host) in _paces:
            return host  # nothing to measure, so no picture that is being made has to be waited for
    if not wait and (shared.state.job or model is None):
        return None
    with a1111.session(job="LoRACLR estimate") as host:
        key = _key(request, host)
        if key not in _paces:
            seconds = _measure(host, *key[1:])
            _paces[key] = Pace(seconds, _BACKWARD * seconds)
        return host


@torch.no_grad()
def _measure(host: Host, height: int, width: int) -> float:
    """Seconds per sample of a batch that even a small card holds."""
    side = host.pixels_per_latent
    x = torch.zeros(BATCH // 2, host.latent_channels, height // side, width // side, device=host.device)
    t = torch.full((len(x),), 500, device=host.device)
    conditioning = host.encode(["a photo"] * len(x))
    taken = []
    for _ in range(3):  # the first run loads kernels; the least is what other programs disturbed least
        begun = time.monotonic()
        host.denoise(x, t, conditioning).sum().item()
        taken.append(time.monotonic() - begun)
    return min(taken) / len(x)


def efforts(request: MergeRequest, host: Host, *, draw: bool) -> dict[str, float]:
    """Effort -> seconds expected."""
    found = {}
    for effort in EFFORTS:
        asked = replace(request, method="contrastive", options={**_own(request), "effort": effort})
        found[effort] = sum(stages(asked, host, draw=draw).values())
    return found


def _own(request: MergeRequest) -> Mapping[str, object]:
    return request.options if request.method == "contrastive" else {}


def placeholder(number: int) -> tuple[Concept, ...]:
    """Concepts to count with before their names are known."""
    return tuple(Concept(f"concept {i}", trigger=f"concept {i}") for i in range(max(1, number)))


def duration(seconds: float) -> str:
    """In words, no more precise than it is."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds / 10) * 10} s"
    if seconds < 3600:
        return f"about {max(2, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"


def refinement_obstacle(host: Host) -> str | None:
    """Why only effort fast can be had here, or None."""
    return host.refinement_obstacle() if hasattr(host, "refinement_obstacle") else None
