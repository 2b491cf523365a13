"""The stages of a merge before they begin: which there will be, in which order, and what each takes.

Progress bars and estimates read the same plan that the merge follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import PlannedStage, Stage, Work
from ..recording import PILOT, PathPlan, Teacher
from ..refining import CHECKS
from ..request import MergeRequest
from ..solving import Method, RefinementOptions

#: first seeds of the three sets of denoising paths: learnt from, deciding when to stop, and only ever measured
TRAIN, HELD_BACK, TEST = 0, 1_000_000, 2_000_000
#: denoising paths per teacher and their steps, of the sets that are not learnt from
HELD_BACK_PATHS, HELD_BACK_STEPS, HELD_BACK_KEPT = 2, 8, 4
TEST_PATHS, TEST_STEPS = 4, 8
#: points per teacher whose layer inputs are recorded
RECORDED_POINTS = 64
#: points per teacher at which the size of its effect is measured, as the unit of the loss
SCALE_POINTS = 16

#: what encoding a prompt costs, in evaluations
_ENCODING = 0.1
#: what a layer costs where nothing is recorded, in layers of a method that records
_UNRECORDED = 0.1
#: reading a layer of a LoRA, and merging one of the text encoder or the UNet, as shares of a layer's work
_READING, _TEXT_SHARE, _UNET_SHARE = 0.01, 0.2, 0.8


def learning_paths(request: MergeRequest, most: int) -> PathPlan:
    """The paths that the merge is made from.

    Args:
        most: points of each path that there is room for
    """
    recording = request.recording
    return PathPlan(
        TRAIN + request.seed, recording.paths, recording.steps, min(most, recording.steps), effects=SCALE_POINTS
    )


def stopping_paths(request: MergeRequest, most: int) -> PathPlan:
    """The paths that decide when the refinement stops."""
    return PathPlan(HELD_BACK + request.seed, HELD_BACK_PATHS, HELD_BACK_STEPS, min(most, HELD_BACK_KEPT))


def measuring_paths(request: MergeRequest, most: int) -> PathPlan:
    """The paths that are only ever measured on."""
    return PathPlan(TEST + request.seed, TEST_PATHS, TEST_STEPS, min(most, TEST_STEPS))


def plan_stages(
    request: MergeRequest,
    method: Method,
    refinement: RefinementOptions | None,
    teachers: Sequence[Teacher],
    *,
    layers: int,
    most: int | None = None,
) -> list[PlannedStage]:
    """What a merge will do, in its order.

    Args:
        refinement: what is done at the model's output, or None
        layers: how many layers are merged
        most: points of each path that there is room for in memory; None: all
    """
    most = max(request.recording.steps, TEST_STEPS) if most is None else most
    number, taught = len(request.concepts), len(teachers)
    train, held, test = learning_paths(request, most), stopping_paths(request, most), measuring_paths(request, most)
    per_layer = layers * number / 2
    cost = 1.0 if method.records else _UNRECORDED

    def followed(stage: Stage, plan: PathPlan) -> PlannedStage:
        return _evaluations(stage, sum(plan.evaluations(teacher) for teacher in teachers))

    def merged(stage: Stage, share: float) -> PlannedStage:
        return PlannedStage(stage, layers, Work.LAYER, cost * share * per_layer)

    stages = [PlannedStage(Stage.READING, number, Work.LAYER, _READING * per_layer)]
    if method.records:
        prompts = sum(min(len(teacher.prompts), train.paths) + 1 for teacher in teachers)
        stages += [
            followed(Stage.RECORDING, train),
            PlannedStage(Stage.TEXT_INPUTS, prompts, Work.EVALUATION, _ENCODING * prompts),
        ]
    stages.append(merged(Stage.TEXT_LAYERS, _TEXT_SHARE))
    if method.records:
        stages.append(_evaluations(Stage.UNET_INPUTS, taught * min(train.points, RECORDED_POINTS)))
    stages.append(merged(Stage.UNET_LAYERS, _UNET_SHARE))
    if refinement:
        if refinement.terms.negative:
            asked = number * (train.points + max(0, number - 2) * PILOT)
            stages.append(_evaluations(Stage.COMPARING, asked))
        stages.append(followed(Stage.HOLDING_BACK, held))
        looks = (CHECKS + 1) * taught * 2
        samples = refinement.steps * refinement.batch_size + looks
        stages.append(PlannedStage(Stage.REFINING, refinement.steps, Work.BACKWARD, samples))
    plain = sum(teacher.concept is None for teacher in teachers)
    stages += [
        followed(Stage.TESTING, test),
        _evaluations(Stage.MEASURING, test.points * (2 * taught + plain * number)),
    ]
    return stages


def _evaluations(stage: Stage, samples: int) -> PlannedStage:
    return PlannedStage(stage, samples, Work.EVALUATION, samples)
