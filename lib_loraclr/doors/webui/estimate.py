"""How long a merge will take, and what it needs.

Stages are counted in evaluations of one sample, from the same plans that the merge follows (`stages.py`), and timed by the
pace of this computer (`pace.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...merge import (
    HELD_BACK_KEPT,
    HELD_BACK_PATHS,
    HELD_BACK_STEPS,
    RECORDED_POINTS,
    SCALE_POINTS,
    TEST_PATHS,
    TEST_STEPS,
)
from ...model import Host
from ...output import PreviewOptions
from ...recording import PILOT, Classroom, Teacher, make_teachers
from ...refining import CHECKS
from ...request import Concept, MergeRequest, parse_options
from ...solving import EFFORTS, find_method
from . import pace

#: what encoding a prompt costs, in evaluations
_ENCODING = 0.1
_LAYER_STAGES = ("merging the text encoder", "merging the UNet")


def stages(request: MergeRequest, host: Host, *, draw: bool) -> dict[str, float]:
    """Stage -> seconds expected, in the order of the stages; the whole bar is their sum."""
    seconds = pace.seconds_per_unit(pace.key_of(request, host))
    return {stage: units * seconds[kind] for stage, (kind, units) in work(request, host, draw=draw).items()}


def work(
    request: MergeRequest, host: Host, *, draw: bool, refined_steps: int | None = None
) -> dict[str, tuple[str, float]]:
    """Stage -> kind and units of what is done in it (`pace.Pace`).

    Args:
        refined_steps: how many steps the refinement made, once that is known; it may end early
    """
    layers = sum(not layer.is_vector for layer in host.layers().values())
    method = find_method(request.method)
    options = parse_options(method.options, request.options, f"method {method.name}")
    teachers = make_teachers(request.concepts, request.prompts)
    number, recording = len(request.concepts), request.recording

    def learning(effects: int | None = None, **plan: int) -> float:
        return sum(Classroom.evaluations(teacher, **plan, effects=effects) for teacher in teachers)

    own = {"paths": recording.paths, "steps": recording.steps, "keep": recording.steps}
    points = recording.paths * recording.steps
    per_layer = layers * number / 2
    found: dict[str, tuple[str, float]] = {"reading the LoRAs": ("layer", 0.01 * per_layer)}
    if method.records:
        found["recording the LoRAs"] = "evaluation", learning(SCALE_POINTS, **own)
        found["recording the text encoder"] = "evaluation", _ENCODING * len(teachers) * recording.paths
    found[_LAYER_STAGES[0]] = "layer", (0.2 if method.records else 0.02) * per_layer
    if method.records:
        found["recording the UNet"] = "evaluation", len(teachers) * min(points, RECORDED_POINTS)
    found[_LAYER_STAGES[1]] = "layer", (0.8 if method.records else 0.08) * per_layer
    refinement = method.refinement(options, number)
    if refinement:
        held = {"paths": HELD_BACK_PATHS, "steps": HELD_BACK_STEPS, "keep": HELD_BACK_KEPT}
        if refinement.terms.negative:
            found["comparing the concepts"] = "evaluation", number * (points + max(0, number - 2) * PILOT)
        found["recording held-back paths"] = "evaluation", learning(**held)
        steps = refinement.steps if refined_steps is None else refined_steps
        found["refining"] = "backward", steps * refinement.batch_size + (CHECKS + 1) * len(teachers) * 2
    test = {"paths": TEST_PATHS, "steps": TEST_STEPS, "keep": TEST_STEPS}
    tested = TEST_PATHS * TEST_STEPS
    found["recording paths to measure on"] = "evaluation", learning(**test)
    found["measuring retention"] = "evaluation", tested * (2 * len(teachers) + _plain(teachers) * number)
    if draw:
        drawn = PreviewOptions()
        pictures = 4 * number + 4 * min(drawn.pairs, number // 2)
        found["drawing the preview"] = "evaluation", 2 * drawn.steps * pictures
    return found


def _plain(teachers: list[Teacher]) -> int:
    return sum(teacher.concept is None for teacher in teachers)


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
