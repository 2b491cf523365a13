"""Which concepts will be in each other's way, seen before a merge on a few predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..model import Host
from ..progress import Progress, Stage
from ..recording import (
    PathPlan,
    Predictor,
    Teacher,
    bundled_embeddings,
    draw_slots,
    load_inputs,
    make_teachers,
    phrases_of,
    record_examples,
    recorded_clip_skip,
)
from ..refining import squared_errors
from ..request import Concept, MergeRequest, Part, PromptOptions, is_background
from .stage_plan import LEARN

#: steps of each denoising path: its noise levels are spread over all that a picture passes
_STEPS = 4


@dataclass(frozen=True)
class Overlap:
    """Who disturbs whom.

    Attributes:
        labels: of the concepts, in the order of the request
        shares: (disturbed, by whom) -> `||ε_ij - ε_i|| / ||ε_i - ε_absent||`, root mean squares over the points of the first:
            how far the second's tag beside it moves what is predicted for its prompts, in units of what it changes there
            itself; 1 minus its retention with both tags. Not there for a style that acts on everything, which belongs to what it
            acts on, nor where the first changes nothing
    """

    labels: tuple[str, ...]
    shares: Mapping[tuple[str, str], float]

    @property
    def worst(self) -> tuple[str, str] | None:
        """The pair with the largest share: who is disturbed, and by whom."""
        return max(self.shares, key=self.shares.get, default=None)


def overlap_evaluations(request: MergeRequest, paths: int) -> int:
    """How many samples `measure_overlap` runs through the model at most."""
    plan = _plan(request, paths)
    beside = plan.points * (len(request.concepts) - 1)
    return sum(plan.evaluations(own, []) + beside for own in _own_teachers(request.concepts, request.prompts).values())


def _plan(request: MergeRequest, paths: int) -> PathPlan:
    return PathPlan(Part.LEARN, LEARN + request.seed, paths, _STEPS)


def _own_teachers(concepts: Sequence[Concept], prompts: PromptOptions) -> dict[int, Teacher]:
    """Number among the teachers -> teacher, of those that ask for one concept alone."""
    teachers = enumerate(make_teachers(concepts, prompts))
    return {k: teacher for k, teacher in teachers if teacher.concept is not None and not teacher.guest}


def measure_overlap(request: MergeRequest, host: Host, *, paths: int, progress: Progress | None = None) -> Overlap:
    """Ask the model with each concept alone, and with each other one beside it, on the same noise and words.

    Args:
        request: checked; its concepts can be merged together
        host: holds the model; left as it was
        paths: denoising paths of each concept, of four steps each

    Raises:
        LoraclrError: as `merge_loras`, of an input
        Interrupted: the user asked to stop
    """
    progress = progress or Progress()
    inputs = load_inputs(request.concepts, host, progress)
    concepts = [lora.concept for lora in inputs]
    background = tuple(i for i, concept in enumerate(concepts) if is_background(concept))
    predictor = Predictor(
        host,
        [lora.deltas for lora in inputs],
        request.recording,
        negative_prompt=request.prompts.negative,
        background=background,
        memory=request.memory_mb << 20,
        progress=progress,
    )
    teachers, plan = make_teachers(concepts, request.prompts), _plan(request, paths)
    skip, _ = recorded_clip_skip(request.recording.clip_skip, inputs, host)
    shares: dict[tuple[str, str], float] = {}
    progress.start(Stage.RECORDING, overlap_evaluations(request, paths))
    with host.knowing(bundled_embeddings(inputs)), host.skipping(skip):
        slots = draw_slots(plan, phrases_of(request, inputs, plan.part), [])
        for k, teacher in _own_teachers(concepts, request.prompts).items():
            examples = record_examples(predictor, teachers, k, plan, slots)
            effect = float(examples.effect.sum())
            for j in range(len(concepts)):
                if j in teacher.active or effect <= 0:
                    continue
                both = predictor.together(sorted({*teacher.active, j}))
                moved = float(squared_errors(predictor, both, examples).sum())
                shares[concepts[teacher.concept].label, concepts[j].label] = (moved / effect) ** 0.5
    return Overlap(tuple(concept.label for concept in concepts), shares)
