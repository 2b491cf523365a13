"""The stages of a merge, each seeing the result of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..errors import LoraclrError
from ..files import DTYPES, is_text_encoder
from ..model import Factors, Host
from ..progress import PlannedStage, Progress, Stage
from ..recording import (
    Examples,
    InputLora,
    PathPlan,
    Predictor,
    Run,
    Teacher,
    add_nearest_other,
    evaluated,
    make_teachers,
    record_examples,
    record_run,
    spread,
)
from ..refining import Refined, Retention, drift_of_singles, measure, refine
from ..request import MergeRequest, is_background
from ..solving import Cut, LayerProblem, MergedLayer, Procedure, Recording, RefinementOptions, merge_layer
from .examination import merged_keys, recording_plan
from .stage_plan import RECORDED_POINTS, learning_paths, measuring_paths, plan_stages, stopping_paths

#: what a run of the model recorded: on whose prompts, and layer key -> `[n, d_in]`
_Recorded = tuple[Teacher, Mapping[str, torch.Tensor]]


class Stages:
    """One merge's stages, in the order of their methods, and what they share."""

    def __init__(
        self,
        request: MergeRequest,
        inputs: Sequence[InputLora],
        host: Host,
        serves: Mapping[str, str] | None,
        progress: Progress,
    ) -> None:
        """
        Args:
            serves: which recording serves each layer (`recording.served_layers`); None where no layer's inputs are recorded
        """
        concepts = [lora.concept for lora in inputs]
        self.request, self.inputs, self.host, self.progress = request, inputs, host, progress
        self.labels = [concept.label for concept in concepts]
        self.teachers = make_teachers(concepts, request.prompts)
        self.subjects = [i for i, concept in enumerate(concepts) if concept.kind == "subject"]
        self.predictor = Predictor(
            host,
            [lora.deltas for lora in inputs],
            request.recording,
            negative_prompt=request.prompts.negative,
            background=tuple(i for i, concept in enumerate(concepts) if is_background(concept)),
            memory=request.memory_mb << 20,
            progress=progress,
        )
        self.serves = serves or {}
        self.warnings: tuple[str, ...] = ()
        keys = merged_keys(inputs)
        keys = keys if serves is None else self._taking_part(keys)
        self.text_encoder_keys = [key for key in keys if is_text_encoder(key)]
        self.unet_keys = [key for key in keys if not is_text_encoder(key)]
        self.memory = recording_plan(request, inputs, host, self.serves)

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

    def plan(self, procedure: Procedure) -> list[PlannedStage]:
        """What is to come."""
        refinement = procedure.refinement(len(self.inputs))
        layers = len(self.text_encoder_keys) + len(self.unet_keys)
        return plan_stages(
            self.request, procedure.method, refinement, self.teachers, layers=layers, most=self.memory.points
        )

    def learn(self) -> list[Examples]:
        """What every teacher predicts: the examples that the merge is made from."""
        return self._follow(Stage.RECORDING, learning_paths(self.request, self.memory.points))

    def _follow(self, stage: Stage, plan: PathPlan) -> list[Examples]:
        """What every teacher predicts on denoising paths of its own."""
        self.progress.start(stage, sum(plan.evaluations(teacher) for teacher in self.teachers))
        return [record_examples(self.predictor, teacher, plan) for teacher in self.teachers]

    def solve(self, procedure: Procedure, examples: Sequence[Examples]) -> dict[str, MergedLayer]:
        """Merge layer by layer: the text encoder(s), then the UNet behind the merged text encoder(s)."""
        recorded = self._record(Stage.TEXT_INPUTS, self.text_encoder_keys, self._text_encoder_runs(examples))
        text_encoder = self._merge_layers(Stage.TEXT_LAYERS, self.text_encoder_keys, procedure, recorded)
        del recorded
        recorded = self._record(Stage.UNET_INPUTS, self.unet_keys, self._unet_runs(examples, text_encoder))
        unet = self._merge_layers(Stage.UNET_LAYERS, self.unet_keys, procedure, recorded)
        return {**text_encoder, **unet}

    def _text_encoder_runs(self, examples: Sequence[Examples]) -> list[Run]:
        """Every teacher's prompts through the text encoder(s)."""
        runs = []
        for own in examples:
            prompts = sorted({*own.prompts, self.request.prompts.negative})
            deltas = self._part(own.teacher, self.text_encoder_keys)
            runs.append(
                Run(own.teacher, deltas, len(prompts), lambda part, asked=prompts: self.host.encode(asked[part]))
            )
        return runs

    def _unet_runs(self, examples: Sequence[Examples], merged: Mapping[str, MergedLayer]) -> list[Run]:
        """Some of every teacher's points through the UNet, behind the merged text encoder(s), which will stand there."""
        text_encoder = {key: layer.factors.to(self.host.device) for key, layer in merged.items()}
        runs = []
        for own in examples:
            few = own.select(spread(len(own), RECORDED_POINTS))
            deltas = {**text_encoder, **self._part(own.teacher, self.unet_keys)}
            runs.append(Run(own.teacher, deltas, len(few), lambda part, few=few: self._denoise(few, part)))
        return runs

    def _denoise(self, points: Examples, part: slice) -> None:
        device = self.host.device
        conditioning = self.host.encode(points.prompts[part])
        evaluated(self.host, points.x[part].to(device).float(), points.t[part].to(device), conditioning)

    def _part(self, teacher: Teacher, keys: Sequence[str]) -> dict[str, tuple[Factors, ...]]:
        together = self.predictor.together(teacher.active)
        return {key: together[key] for key in keys if key in together}

    def _record(self, stage: Stage, keys: Sequence[str], runs: Sequence[Run]) -> list[_Recorded]:
        """The inputs of these layers in every run."""
        if not (runs and keys):
            return []
        self.progress.start(stage, sum(run.samples for run in runs))
        capacity = {self.serves[key]: self.memory.rows for key in keys}
        return [(run.teacher, record_run(self.host, run, capacity, self.request.seed, self.progress)) for run in runs]

    def _merge_layers(
        self, stage: Stage, keys: Sequence[str], procedure: Procedure, recorded: Sequence[_Recorded]
    ) -> dict[str, MergedLayer]:
        """Each of these layers merged."""
        self.progress.start(stage, len(keys))
        # of files that hold whole deltas the rank costs nothing
        rank = "full" if self.request.whole and self.request.rank == "auto" else self.request.rank
        cut, merged = Cut(rank, self.request.kept), {}
        for key in keys:
            merged[key] = merge_layer(self._problem(key, recorded), procedure.method, procedure.options, cut)
            self.progress.advance(1, key)
        return merged

    def _problem(self, key: str, recorded: Sequence[_Recorded]) -> LayerProblem:
        """One layer, on the model's device in fp32."""
        deltas = [lora.deltas.get(key) for lora in self.inputs]
        recordings = tuple(
            Recording(
                inputs[self.serves[key]].to(self.host.device, torch.float32),
                teacher.active,
                teacher.importance,
                tuple(teacher.rivals(self.subjects)),
            )
            for teacher, inputs in recorded
        )
        return LayerProblem(key, tuple(delta and delta.to(torch.float32) for delta in deltas), recordings)

    def refine(
        self, layers: Mapping[str, MergedLayer], examples: Sequence[Examples], options: RefinementOptions
    ) -> Refined:
        """The contrastive objective at the model's output, from the layer-wise merge on."""
        if options.terms.negative:
            self.progress.start(Stage.COMPARING, sum(map(len, examples)))
            examples = add_nearest_other(self.predictor, examples, self.subjects)
        held_back = self._follow(Stage.HOLDING_BACK, stopping_paths(self.request, self.memory.points))
        self.progress.start(Stage.REFINING, options.steps)
        start = {key: layer.factors for key, layer in layers.items()}
        return refine(self.predictor, start, examples, held_back, options, seed=self.request.seed)

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
        examples = self._follow(Stage.TESTING, measuring_paths(self.request, self.memory.points))
        everyone = self.predictor.together(range(len(self.inputs)))
        singles = sum(len(own) for own in examples if own.teacher.concept is None) * len(self.inputs)
        results = 1 if factors is None else 2
        self.progress.start(Stage.MEASURING, results * sum(map(len, examples)) + singles)
        drift = drift_of_singles(self.predictor, examples)
        before = measure(self.predictor, everyone, examples, single_drift=drift)
        return before, None if factors is None else measure(self.predictor, factors, examples, single_drift=drift)
