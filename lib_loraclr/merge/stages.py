"""The stages of a merge, each seeing the result of the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LoraclrError
from ..files import DTYPES, is_text_encoder
from ..model import Deltas, Factors, Host, MemoryPlan, Truncation, exact, plan_memory, truncate
from ..progress import Progress
from ..recording import (
    BATCH,
    Classroom,
    Examples,
    InputLora,
    Teacher,
    add_nearest_other,
    base_model_warnings,
    evaluated,
    lost_embeddings,
    make_teachers,
    record_inputs,
    shared_inputs,
    spread,
)
from ..refining import Refined, Retention, drift_of_singles, measure, refine
from ..request import MergeRequest, is_background, plain_prompts_that_call
from ..solving import LayerProblem, LayerResult, Method, RefinementOptions, Rows

#: first seeds of the three sets of denoising paths: learnt from, deciding when to stop, and only ever measured
TRAIN, HELD_BACK, TEST = 0, 1_000_000, 2_000_000
#: denoising paths per teacher and their steps, of the sets that are not learnt from
HELD_BACK_PATHS, HELD_BACK_STEPS, HELD_BACK_KEPT = 2, 8, 4
TEST_PATHS, TEST_STEPS = 4, 8
#: points per teacher whose layer inputs are recorded
RECORDED_POINTS = 64
#: points per teacher at which the size of its effect is measured, as the unit of the loss
SCALE_POINTS = 16


@dataclass(frozen=True)
class MergedLayer:
    """A merged layer: what the method said of it, and the share of its effect that its rank keeps."""

    factors: Factors
    notes: Mapping[str, float]
    kept: float


@dataclass(frozen=True)
class _Run:
    """A run of the model whose layers' inputs are recorded.

    Attributes:
        teacher: on whose prompts
        deltas: what the model is changed by
        evaluations: how many samples
        evaluate: runs the samples of a slice
    """

    teacher: Teacher
    deltas: Deltas
    evaluations: int
    evaluate: Callable[[slice], object]


def served_layers(host: Host, keys: Sequence[str]) -> dict[str, str]:
    """Layer key -> key of the layer whose recording serves it too, found by one run at the smallest size.

    A layer that does not run is not among them.
    """

    @torch.no_grad()
    def run() -> None:
        conditioning = host.encode([""])
        smallest = torch.zeros(1, host.latent_channels, 8, 8, device=host.device)
        host.denoise(smallest, torch.zeros(1, dtype=torch.long, device=host.device), conditioning)

    ordered = sorted(keys, key=lambda key: not is_text_encoder(key))
    return shared_inputs(host.layers(), ordered, run)


def recording_plan(
    request: MergeRequest, host: Host, keys: Sequence[str], serves: Mapping[str, str], *, recordings: int
) -> MemoryPlan:
    """How the memory budget of a request is spent.

    Args:
        keys: layers that are merged
        serves: of these or more, from `served_layers`
        recordings: how many each layer has

    Raises:
        LoraclrError: not even the least is within the budget
    """
    layers, recording = host.layers(), request.recording

    def columns(stage: Sequence[str]) -> dict[str, int]:
        return {serves[key]: layers[serves[key]].shape[1] for key in stage if key in serves}

    stages = [columns([key for key in keys if is_text_encoder(key) == first]) for first in (True, False)]
    height, width = (
        (side or host.default_size) // host.pixels_per_latent for side in (recording.height, recording.width)
    )
    return plan_memory(
        request.memory_mb,
        max(stages, key=lambda stage: sum(stage.values())),
        recordings=recordings,
        paths=recordings * recording.paths,
        steps=max(recording.steps, TEST_STEPS),
        latent_numbers=host.latent_channels * height * width,
    )


class Job:
    """One merge's stages, in the order of their methods, and what they share."""

    def __init__(
        self, request: MergeRequest, inputs: Sequence[InputLora], host: Host, progress: Progress, *, records: bool
    ) -> None:
        """
        Args:
            records: whether inputs of layers will be recorded, and need room in the memory budget
        """
        concepts = [given.concept for given in inputs]
        self.request, self.inputs, self.host, self.progress = request, inputs, host, progress
        self.labels = [concept.label for concept in concepts]
        self.warnings = tuple(warning for given in inputs for warning in given.warnings)
        self.warnings += tuple(base_model_warnings(inputs, host))
        self.warnings += tuple(lost_embeddings(request, inputs))
        self.warnings += tuple(plain_prompts_that_call(concepts, request.prompts))
        self.teachers = make_teachers(concepts, request.prompts)
        self.subjects = [i for i, concept in enumerate(concepts) if concept.kind == "subject"]
        self.room = Classroom(
            host,
            [given.deltas for given in inputs],
            request.recording,
            negative_prompt=request.prompts.negative,
            background=tuple(i for i, concept in enumerate(concepts) if is_background(concept)),
            memory=request.memory_mb << 20,
            progress=progress,
        )
        keys = sorted(set().union(*(given.deltas for given in inputs)))
        self.serves = served_layers(host, keys) if records else {}
        if records:
            keys = self._taking_part(keys)
        self.text_encoder_keys = [key for key in keys if is_text_encoder(key)]
        self.unet_keys = [key for key in keys if not is_text_encoder(key)]
        self.plan = recording_plan(request, host, keys, self.serves, recordings=len(self.teachers))

    def _taking_part(self, keys: Sequence[str]) -> list[str]:
        """The layers that a run of the model reaches; of the others there is nothing to merge by, and nothing to lose.

        Stable Diffusion 2 has a last layer of the text encoder that it does not read.
        """
        idle = [key for key in keys if key not in self.serves]
        if len(idle) == len(keys):
            raise LoraclrError(f"No layer of the LoRAs takes part in {self.host.checkpoint}: it is of another kind.")
        if idle:
            self.warnings += (
                f"{len(idle)} layers take no part in {self.host.checkpoint} and are left out ({idle[0]}, …).",
            )
        return [key for key in keys if key in self.serves]

    def learn(self, seed: int, stage: str, **plan: int) -> list[Examples]:
        """What every teacher predicts on its own denoising paths; `plan` is that of `Classroom.learn`."""
        plan["keep"] = min(self.plan.points, plan.get("keep", plan["steps"]))
        self.progress.start(stage, sum(self.room.evaluations(teacher, **plan) for teacher in self.teachers))
        return [self.room.learn(teacher, **plan, seed=seed + self.request.seed) for teacher in self.teachers]

    def learn_to_merge(self) -> list[Examples]:
        """The examples that the merge is made from."""
        recording = self.request.recording
        return self.learn(
            TRAIN, "recording the LoRAs", paths=recording.paths, steps=recording.steps, effects=SCALE_POINTS
        )

    def solve(self, method: Method, options: Any, lessons: Sequence[Examples]) -> dict[str, MergedLayer]:
        """Merge layer by layer: the text encoder(s), then the UNet behind the merged text encoder(s)."""
        text_encoder = self._solve_stage(
            "text encoder", self.text_encoder_keys, method, options, self._text_encoder_runs(lessons)
        )
        unet = self._solve_stage("UNet", self.unet_keys, method, options, self._unet_runs(lessons, text_encoder))
        return {**text_encoder, **unet}

    def _solve_stage(
        self, name: str, keys: Sequence[str], method: Method, options: Any, runs: Sequence[_Run]
    ) -> dict[str, MergedLayer]:
        """Record the inputs of these layers and merge each of them; the recordings are gone when it returns."""
        recordings = []
        if method.records and keys:
            self.progress.start(f"recording the {name}", sum(run.evaluations for run in runs))
            recordings = [self._record(keys, run) for run in runs]
        self.progress.start(f"merging the {name}", len(keys))
        merged = {}
        for key in keys:
            merged[key] = self._merge_layer(key, method, options, recordings)
            self.progress.advance(1, key)
        return merged

    def _text_encoder_runs(self, lessons: Sequence[Examples]) -> list[_Run]:
        """Every teacher's prompts through the text encoder(s)."""
        runs = []
        for lesson in lessons:
            prompts = sorted({*lesson.prompts, self.request.prompts.negative})
            deltas = self._part(lesson.teacher, self.text_encoder_keys)
            runs.append(
                _Run(lesson.teacher, deltas, len(prompts), lambda part, asked=prompts: self.host.encode(asked[part]))
            )
        return runs

    def _unet_runs(self, lessons: Sequence[Examples], merged: Mapping[str, MergedLayer]) -> list[_Run]:
        """Some of every teacher's points through the UNet, behind the merged text encoder(s), which will stand there."""
        text_encoder = {key: layer.factors.to(self.host.device) for key, layer in merged.items()}
        runs = []
        for lesson in lessons:
            few = lesson.select(spread(len(lesson), RECORDED_POINTS))
            deltas = {**text_encoder, **self._part(lesson.teacher, self.unet_keys)}
            runs.append(_Run(lesson.teacher, deltas, len(few), lambda part, few=few: self._denoise(few, part)))
        return runs

    def _denoise(self, points: Examples, part: slice) -> None:
        device = self.host.device
        conditioning = self.host.encode(points.prompts[part])
        evaluated(self.host, points.x[part].to(device).float(), points.t[part].to(device), conditioning)

    def _part(self, teacher: Teacher, keys: Sequence[str]) -> dict[str, tuple[Factors, ...]]:
        together = self.room.together(teacher.active)
        return {key: together[key] for key in keys if key in together}

    def _record(self, keys: Sequence[str], run: _Run) -> tuple[Teacher, Mapping[str, torch.Tensor]]:
        """The inputs of these layers in one run of the model."""
        capacity = {self.serves[key]: self.plan.rows for key in keys}
        with (
            self.host.apply(run.deltas),
            record_inputs(self.host.layers(), capacity, seed=self.request.seed) as result,
            torch.no_grad(),
        ):
            for start in range(0, run.evaluations, BATCH):
                part = slice(start, min(start + BATCH, run.evaluations))
                run.evaluate(part)
                self.progress.advance(part.stop - start, run.teacher.name)
        return run.teacher, result()

    def _merge_layer(self, key: str, method: Method, options: Any, recordings) -> MergedLayer:
        """One layer; nothing here is larger than this layer's own matrices."""
        deltas = [given.deltas.get(key) for given in self.inputs]
        exact = [None if delta is None else delta.to(torch.float32) for delta in deltas]
        rows = tuple(
            Rows(
                inputs[self.serves[key]].to(self.host.device, torch.float32),
                teacher.active,
                teacher.importance,
                tuple(teacher.rivals(self.subjects)),
            )
            for teacher, inputs in recordings or ()
        )
        problem = LayerProblem(key, tuple(exact), rows)
        result: LayerResult = method.function(problem, options)
        cut = self._cut(result.factors, problem.stacked() if rows else None)
        return MergedLayer(cut.factors.to(torch.float32), result.notes, cut.kept)

    def _cut(self, delta: Factors, inputs: torch.Tensor | None) -> Truncation:
        """The delta at the rank that was asked for; without inputs nothing says what could be left out."""
        rank = self.request.rank
        if rank.isdecimal():
            return truncate(delta, inputs, rank=int(rank))
        if rank == "auto" and inputs is not None and not self.request.whole:
            return truncate(delta, inputs, share=self.request.kept)
        return Truncation(exact(delta), 1.0)

    def refine(
        self, layers: Mapping[str, MergedLayer], lessons: Sequence[Examples], options: RefinementOptions
    ) -> Refined:
        """The contrastive objective at the model's output, from the layer-wise merge on."""
        if options.terms.negative:
            self.progress.start("comparing the concepts", sum(map(len, lessons)))
            lessons = add_nearest_other(self.room, lessons, self.subjects)
        held_back = self.learn(
            HELD_BACK, "recording held-back paths", paths=HELD_BACK_PATHS, steps=HELD_BACK_STEPS, keep=HELD_BACK_KEPT
        )
        self.progress.start("refining", options.steps)
        start = {key: layer.factors for key, layer in layers.items()}
        return refine(self.room, start, lessons, held_back, options, seed=self.request.seed)

    def rounded(self, factors: Mapping[str, Factors]) -> dict[str, Factors]:
        """Factors as the file will hold them, on the model's device; a file of whole deltas rounds only those."""
        dtype = torch.float32 if self.request.whole else DTYPES[self.request.precision]
        rounded = {key: f.to(dtype) for key, f in factors.items()}
        for key, f in rounded.items():
            if not (f.up.isfinite().all() and f.down.isfinite().all()):
                raise LoraclrError(f"The merged {key} does not fit into {self.request.precision}: choose bf16 or fp32.")
        return {key: f.to(self.host.device) for key, f in rounded.items()}

    def measure(self, factors: Mapping[str, Factors] | None) -> tuple[Retention, Retention | None]:
        """Retention of all tags together and of the merge (if any), on paths that nothing was learnt from or stopped by."""
        examples = self.learn(TEST, "recording paths to measure on", paths=TEST_PATHS, steps=TEST_STEPS)
        everyone = self.room.together(range(len(self.inputs)))
        singles = sum(len(own) for own in examples if own.teacher.concept is None) * len(self.inputs)
        results = 1 if factors is None else 2
        self.progress.start("measuring retention", results * sum(map(len, examples)) + singles)
        drift = drift_of_singles(self.room, examples)
        before = measure(self.room, everyone, examples, single_drift=drift)
        return before, None if factors is None else measure(self.room, factors, examples, single_drift=drift)
