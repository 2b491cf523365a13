"""What a merge needs and what stands in its way, known before anything is recorded: for every door, and for the merge itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import LoraclrError
from ..files import conditions, is_text_encoder
from ..model import Host, MemoryPlan, plan_memory
from ..output import require_copyable, require_places
from ..recording import (
    InputLora,
    base_model_warnings,
    bundled_embeddings,
    lost_embeddings,
    make_teachers,
    recorded_clip_skip,
    unweighted_prompts,
)
from ..request import (
    Concept,
    MergeRequest,
    check_prompts,
    plain_prompts_that_call,
    unusual_weights,
    words_within_words,
)
from ..solving import Procedure
from .stage_plan import learning_paths, measuring_paths


@dataclass(frozen=True)
class Examination:
    """What was found out about a merge.

    Attributes:
        problems: what stands in its way, the first first
        warnings: what a person should know of them together; what there is to say of one input is with that
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def require_possible(self) -> None:
        """Raises LoraclrError with the first problem."""
        if self.problems:
            raise LoraclrError(self.problems[0])


def examine(
    request: MergeRequest, inputs: Sequence[InputLora], host: Host, serves: Mapping[str, str] | None = None
) -> Examination:
    """Look for everything that the inputs together, the prompts, the checkpoint and the memory could be an obstacle by.

    Args:
        request: checked by itself; its concepts are those of the inputs
        inputs: read and held against the model; their shapes are enough
        serves: which recording serves each layer (`recording.served_layers`); None: not asked whether the memory budget is
            enough

    Raises:
        LoraclrError: an unknown method, or an option that it does not take
    """
    procedure = Procedure.of(request)
    checks = _obstacles(request, inputs, host, procedure, serves)
    problems = tuple(dict.fromkeys(checks))
    concepts = [lora.concept for lora in inputs]
    warnings = [
        *unusual_weights(concepts),
        *words_within_words(concepts),
        *base_model_warnings(inputs, host),
        *(said for lora in inputs for said in conditions(lora.concept.label, lora.file.metadata)),
        *lost_embeddings(request, inputs),
        *plain_prompts_that_call(concepts, request.prompts),
        *recorded_clip_skip(request.recording.clip_skip, inputs, host)[1],
        *unweighted_prompts(request.prompts, host),
        *(_prompts_never_asked(request, concepts) if procedure.method.records else ()),
    ]
    return Examination(problems, tuple(warnings))


def _obstacles(
    request: MergeRequest,
    inputs: Sequence[InputLora],
    host: Host,
    procedure: Procedure,
    serves: Mapping[str, str] | None,
) -> Iterator[str]:
    yield from _same_file_twice(inputs)
    if inputs and not any(lora.deltas for lora in inputs):
        yield "All weights are 0, so nothing would be merged: give at least one LoRA another weight."
    else:
        yield from (
            f"All that {lora.concept.label} changes has the weight 0, so nothing of it would be merged: give it another weight, "
            "or leave it out."
            for lora in inputs
            if not lora.deltas
        )
    concepts = [lora.concept for lora in inputs]
    refused = [
        lambda: bundled_embeddings(inputs),
        lambda: check_prompts(concepts, request.prompts),
    ]
    if request.save_as == "checkpoint":
        refused += [
            lambda: require_copyable(host.checkpoint_path),
            lambda: require_places(host.checkpoint_path, inputs),
        ]
    if procedure.method.records and serves is not None and inputs:
        refused.append(lambda: recording_plan(request, inputs, host, serves))
    for check in refused:
        try:
            check()
        except LoraclrError as error:
            yield str(error)
    obstacle = host.refinement_obstacle()
    if obstacle and procedure.refinement(len(inputs)):
        yield obstacle


def _prompts_never_asked(request: MergeRequest, concepts: Sequence[Concept]) -> Iterator[str]:
    """A warning where somebody wrote more prompts than there are points to ask them at."""
    plan = learning_paths(request)
    for teacher in make_teachers(concepts, request.prompts):
        asked = len(teacher.texts_asked(plan.called(teacher)))
        if not teacher.guest and len({*teacher.texts}) > asked:
            yield (
                f"{teacher.name}: of {len(teacher.texts)} prompts only {asked} are recorded: raise paths or steps, or give fewer."
            )


def _same_file_twice(inputs: Sequence[InputLora]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for lora in inputs:
        other = seen.setdefault(lora.file.hash, lora.concept.lora)
        if other != lora.concept.lora:
            yield f"{lora.concept.lora} is the same LoRA as {other}: name it once, and raise its weight instead."


def merged_keys(inputs: Sequence[InputLora]) -> list[str]:
    """Keys of the layers that at least one input changes, sorted."""
    return sorted(set().union(*(lora.deltas for lora in inputs)))


def recording_plan(
    request: MergeRequest, inputs: Sequence[InputLora], host: Host, serves: Mapping[str, str]
) -> MemoryPlan:
    """How the memory budget of a request is spent.

    Args:
        serves: of the layers that are merged or more, from `recording.served_layers`

    Raises:
        LoraclrError: not even the least is within the budget
    """
    layers, recording = host.layers(), request.recording
    keys = merged_keys(inputs)
    teachers = make_teachers([lora.concept for lora in inputs], request.prompts)

    def columns(stage: Sequence[str]) -> dict[str, int]:
        return {serves[key]: layers[serves[key]].shape[1] for key in stage if key in serves}

    stages = [columns([key for key in keys if is_text_encoder(key) == first]) for first in (True, False)]
    height, width = (
        (side or host.default_size) // host.pixels_per_latent for side in (recording.height, recording.width)
    )
    return plan_memory(
        request.memory_mb,
        max(stages, key=lambda stage: sum(stage.values())),
        recordings=len(teachers),
        points=max(learning_paths(request).points, measuring_paths(request).points),
        latent_numbers=host.latent_channels * height * width,
    )
