"""The stages of a merge before they begin: which there will be, in which order, and what each takes.

Progress bars and estimates read the same plan that the merge follows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..progress import PlannedStage, Stage, Work
from ..recording import PathPlan, Teacher, count_pairs
from ..refining import CHECKS, ROLLOUTS_AFTER, own_evaluations, questions, questions_each, style_rows
from ..request import MergeRequest, Part
from ..solving import Method, RefinementOptions

#: first seeds of what is learnt from, decides when to stop, and is only ever measured
LEARN, STOP, MEASURE = 0, 1_000_000, 2_000_000
#: denoising paths per teacher and their steps, of the sets that are not learnt from
STOP_PATHS, STOP_STEPS = 2, 8
MEASURE_PATHS, MEASURE_STEPS = 4, 8
#: points per teacher whose layer inputs are recorded
RECORDED_POINTS = 64
#: prompts per teacher whose passage through the text encoder is recorded
RECORDED_PROMPTS = 256
#: of so many points to learn from the negative prompt is asked at one: guidance subtracts what is predicted there at every step
NEGATIVE_EVERY = 4
#: points per teacher at which the size of its effect is measured, as the unit of the loss
SCALE_POINTS = 32

#: what encoding a prompt costs, in evaluations
_ENCODING = 0.1
#: what a layer costs where nothing is recorded, in layers of a method that records
_UNRECORDED = 0.1
#: what reading a layer of a LoRA costs, in the same unit
_READING = 0.01


def learning_paths(request: MergeRequest, most: int | None = None) -> PathPlan:
    """The points that the merge is made from.

    Args:
        most: points of a teacher that there is room for; None for as many as there are
    """
    own = request.recording
    # A concept merged alone has no teacher without triggers (teachers.make_teachers), and keeps what it does there.
    every = NEGATIVE_EVERY if len(request.concepts) > 1 else 0
    plan = PathPlan(
        Part.LEARN,
        LEARN + request.seed,
        own.paths,
        own.steps,
        own.renoised,
        negative_every=every,
        effects=SCALE_POINTS,
        partners=True,
    )
    return _within(plan, most)


def stopping_paths(request: MergeRequest, most: int | None = None) -> PathPlan:
    """The points that decide when the refinement stops."""
    return _within(PathPlan(Part.STOP, STOP + request.seed, STOP_PATHS, STOP_STEPS), most)


def measuring_paths(request: MergeRequest, most: int | None = None) -> PathPlan:
    """The points that are only ever measured on."""
    return _within(PathPlan(Part.MEASURE, MEASURE + request.seed, MEASURE_PATHS, MEASURE_STEPS, partners=True), most)


def _within(plan: PathPlan, most: int | None) -> PathPlan:
    return plan if most is None else plan.within(most)


def plan_stages(
    request: MergeRequest,
    method: Method,
    refinement: RefinementOptions | None,
    teachers: Sequence[Teacher],
    *,
    layers: tuple[int, int],
    most: int | None = None,
    known: Collection[Stage] = (),
) -> list[PlannedStage]:
    """What a merge will do, in its order.

    Args:
        refinement: what is done at the model's output, or None
        layers: how many layers of the text encoder(s) and of the UNet are merged
        most: points of a teacher that there is room for in memory; None: all
        known: stages that are left out, as what they would bring is there already; with `TESTING` all tags were measured too
    """
    number, taught = len(request.concepts), len(teachers)
    learn, stop, test = learning_paths(request, most), stopping_paths(request, most), measuring_paths(request, most)
    per_layer = sum(layers) * number / 2
    cost = 1.0 if method.records else _UNRECORDED

    def followed(stage: Stage, plan: PathPlan) -> PlannedStage:
        return evaluations(stage, following_evaluations(teachers, plan))

    def merged(stage: Stage, own: int) -> PlannedStage:
        return PlannedStage(stage, own, Work.LAYER, cost * own * number / 2)

    recorded = sum(min(len(learn.called(teacher)), RECORDED_POINTS) for teacher in teachers)
    stages = [PlannedStage(Stage.READING, number, Work.LAYER, _READING * per_layer)]
    if method.records:
        prompts = taught * RECORDED_PROMPTS
        stages += [
            followed(Stage.RECORDING, learn),
            PlannedStage(Stage.TEXT_INPUTS, prompts, Work.EVALUATION, _ENCODING * prompts),
        ]
    stages.append(merged(Stage.TEXT_LAYERS, layers[0]))
    if method.records:
        stages.append(evaluations(Stage.UNET_INPUTS, recorded))
    stages.append(merged(Stage.UNET_LAYERS, layers[1]))
    if refinement:
        stages.append(followed(Stage.HOLDING_BACK, stop))
        beside = len(subjects_beside(teachers))
        looked = (CHECKS + 1) * retention_evaluations(teachers, stop, number, alone=False)
        looked += len(ROLLOUTS_AFTER) * own_evaluations(beside, refinement.rollouts)
        # scenes are wider than single concepts, and a style is asked for with its words and without
        wide = refinement.scene_rows * _SCENE_WIDTH if beside > 1 else 0
        styles = 2 * style_rows(teachers, refinement.batch_size)
        samples = refinement.steps * (refinement.batch_size + wide + styles) + looked / _BACKWARD
        stages.append(PlannedStage(Stage.REFINING, refinement.steps, Work.BACKWARD, samples))
        scenes = min(count_pairs(learn.points - len(learn.negative()), beside), RECORDED_POINTS)
        if cuts(request):
            stages.append(evaluations(Stage.CUTTING, recorded + scenes))
    asked = measuring_evaluations(teachers, test, number, all_tags=Stage.TESTING not in known)
    stages += [followed(Stage.TESTING, test), evaluations(Stage.MEASURING, asked)]
    return [item for item in stages if item.stage not in known]


#: what a sample forward and back costs, in evaluations; how wide scenes are on the average, in native pictures
_BACKWARD, _SCENE_WIDTH = 3, 2.125


def subjects_beside(teachers: Sequence[Teacher]) -> list[int]:
    """The concepts that can stand beside each other."""
    return [teacher.concept for teacher in teachers if teacher.in_scenes]


def following_evaluations(teachers: Sequence[Teacher], plan: PathPlan) -> int:
    """Of what all teachers predict."""
    subjects = subjects_beside(teachers)
    return sum(plan.evaluations(teacher, subjects) for teacher in teachers)


def measuring_evaluations(
    teachers: Sequence[Teacher], test: PathPlan, number: int, *, merged: bool = True, all_tags: bool = True
) -> int:
    """All tags on every point, each LoRA alone without triggers; and of a merge every point, and who is taken for whom."""
    everyone = retention_evaluations(teachers, test, number, alone=True) if all_tags else 0
    own = retention_evaluations(teachers, test, number, alone=False) + questions(teachers, test) if merged else 0
    return everyone + own


def retention_evaluations(teachers: Sequence[Teacher], test: PathPlan, number: int, *, alone: bool) -> int:
    """Every point once, and where a style is called by words, twice.

    Args:
        alone: and each LoRA alone without triggers, whose drift that of a merge is compared with
    """
    points = sum(test.of(teacher).points * questions_each(teacher) for teacher in teachers)
    # what is active whatever the prompt is part of what is compared with
    plain = sum(test.of(own).points * (number - len(own.active)) for own in teachers if own.concept is None)
    return points + plain if alone else points


def cuts(request: MergeRequest) -> bool:
    """Whether a refined merge is cut: of files that hold whole deltas the rank costs nothing."""
    return request.rank != "full" and not (request.whole and request.rank == "auto")


def evaluations(stage: Stage, samples: int) -> PlannedStage:
    """A stage of so many samples through the model."""
    return PlannedStage(stage, samples, Work.EVALUATION, samples)
