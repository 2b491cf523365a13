"""The stages of a merge, each seeing the result of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..errors import LoraclrError
from ..files import DTYPES, WorkFolder, is_text_encoder
from ..model import ALONE, LEAST_ROWS, Factors, Host, Processes
from ..progress import PlannedStage, Progress, Stage
from ..recording import (
    Examples,
    InputLora,
    PathPlan,
    Predictor,
    Run,
    Slot,
    Teacher,
    asked_in_parts,
    draw_slots,
    make_scenes,
    make_teachers,
    phrases_of,
    record_examples,
    record_run,
    spread,
)
from ..refining import (
    Recognition,
    Refined,
    Retention,
    drift_of_singles,
    gather_candidates,
    measure,
    recognise,
    refine,
)
from ..request import MergeRequest, Part, is_background
from ..solving import Cut, MergedLayer, Procedure, RefinementOptions
from .examination import merged_keys, recording_plan
from .followed import Followed, recorded_for
from .keeping import Keeping
from .layer_merging import LayerMerger, Recorded
from .runs import denoising, encoding, recorded_points
from .stage_plan import (
    RECORDED_POINTS,
    RECORDED_PROMPTS,
    cuts,
    following_evaluations,
    learning_paths,
    measuring_evaluations,
    measuring_paths,
    plan_stages,
    stopping_paths,
    subjects_beside,
)
from .start import MERGED_ANEW, Finished, Networks, Start, as_layers


class Stages:
    """One merge's stages, in the order of their methods, and what they share.

    Attributes:
        followed: what was recorded, where it is held longer than it is needed (`go_by`)
    """

    followed: Followed | None = None

    def __init__(
        self,
        request: MergeRequest,
        inputs: Sequence[InputLora],
        host: Host,
        serves: Mapping[str, str] | None,
        progress: Progress,
        *,
        start: Start | None = None,
        work: WorkFolder | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """
        Args:
            serves: which recording serves each layer (`recording.served_layers`); None where no layer's inputs are recorded
            start: finished merges to go on from
            work: where what is computed is kept
            processes: that do the merge together
        """
        concepts = [lora.concept for lora in inputs]
        self.request, self.inputs, self.host, self.progress = request, inputs, host, progress
        self.processes = processes
        self.labels = [concept.label for concept in concepts]
        self.teachers = make_teachers(concepts, request.prompts)
        self.subjects = [i for i, concept in enumerate(concepts) if concept.kind == "subject"]
        self.keeping = Keeping(work, request, inputs, host, start) if work else None
        self.predictor = Predictor(
            host,
            [lora.deltas for lora in inputs],
            request.recording,
            negative_prompt=request.prompts.negative,
            background=tuple(i for i, concept in enumerate(concepts) if is_background(concept)),
            memory=request.memory_mb << 20,
            progress=progress,
            shelf=self.keeping.shelf if self.keeping else None,
        )
        self.predictor.processes = processes
        self.start = start
        self.serves = serves or {}
        self.warnings: tuple[str, ...] = ()
        self.planned: list[PlannedStage] = []
        keys = merged_keys(inputs)
        keys = keys if serves is None else self._taking_part(keys)
        self.text_encoder_keys = [key for key in keys if is_text_encoder(key)]
        self.unet_keys = [key for key in keys if not is_text_encoder(key)]
        self.layer_merger = LayerMerger(host, Networks(inputs, start), self.serves, self.subjects)
        self.memory = recording_plan(request, inputs, host, self.serves)

    def go_by(self, followed: Followed | None) -> None:
        """What was recorded before is not recorded again, and what is recorded now is held there.

        Args:
            followed: None: nothing is held longer than it is needed
        """
        self.followed = followed
        if followed is not None:
            followed.begin(recorded_for(self.request, self.inputs, self.host, self.memory.points))

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
        refinement = self.refinement(procedure)
        layers = len(self.text_encoder_keys), len(self.unet_keys)
        known = [*(MERGED_ANEW if self.whole_start else ()), *(self.followed.examples if self.followed else ())]
        self.planned = plan_stages(
            self.request,
            procedure.method,
            refinement,
            self.teachers,
            layers=layers,
            most=self.memory.points,
            known=known,
        )
        return self.planned

    @property
    def trouble(self) -> tuple[str, ...]:
        """Warnings of what did not go as it should."""
        kept = self.keeping.trouble if self.keeping else ()
        return (*asked_in_parts(self.host), *self.layer_merger.trouble, *kept)

    @property
    def whole_start(self) -> Finished | None:
        """The finished merge that is gone on from, where every concept is in it."""
        merges = self.start.merges if self.start else ()
        return next((merge for merge in merges if merge.labels >= set(self.labels)), None)

    def refinement(self, procedure: Procedure) -> RefinementOptions | None:
        """What is done at the model's output; None for nothing.

        Raises:
            LoraclrError: a start cannot be gone on from without
        """
        whole = procedure.refinement(len(self.inputs))
        return self.start.refinement(whole, self.labels) if self.start else whole

    def run(self, procedure: Procedure) -> tuple[dict[str, MergedLayer], Refined | None]:
        """From the recording to the cut: the merged layers, and how the refinement ended, if there was one."""
        examples = self.learn() if procedure.method.records else []
        layers = self.solve(procedure, examples)
        options = self.refinement(procedure)
        if options is None:
            return layers, None
        refined = self.refine(layers, examples, options)
        return self.cut_refined(refined.factors, layers, examples), refined

    def learn(self) -> list[Examples]:
        """What every teacher predicts: the examples that the merge is made from."""
        return self._follow(Stage.RECORDING, learning_paths(self.request, self.memory.points))

    def _follow(self, stage: Stage, plan: PathPlan) -> list[Examples]:
        """What every teacher predicts in the slots of a plan, recorded now or before."""
        if self.followed is None:
            return self._recorded_paths(stage, plan)
        if stage not in self.followed.examples:
            self.followed.examples[stage] = self._recorded_paths(stage, plan)
        recorded = zip(self.followed.examples[stage], self.teachers, strict=True)
        return [replace(own, teacher=teacher) for own, teacher in recorded]  # another importance than it had then

    def _recorded_paths(self, stage: Stage, plan: PathPlan) -> list[Examples]:
        self.progress.start(stage, following_evaluations(self.teachers, plan))
        subjects = subjects_beside(self.teachers)
        slots = draw_slots(plan, phrases_of(self.request, self.inputs, plan.part), subjects)

        def told(k: int) -> None:
            self.progress.found(plan.evaluations(self.teachers[k], subjects), self.teachers[k].name)

        return self.processes.each(
            len(self.teachers), lambda k: record_examples(self.predictor, self.teachers, k, plan, slots), told
        )

    def solve(self, procedure: Procedure, examples: Sequence[Examples]) -> dict[str, MergedLayer]:
        """Merge layer by layer: the text encoder(s), then the UNet behind the merged text encoder(s).

        Where a refinement follows, at the full rank: it goes further there, and cuts once, at its end.
        """
        if self.whole_start:
            layers = self.host.layers()
            return as_layers(
                self.whole_start, {key: layers[key].shape for key in (*self.text_encoder_keys, *self.unet_keys)}
            )
        found = self.processes.from_one(self.keeping.find_layers()) if self.keeping else None
        if found:
            for item in self.planned:
                if item.stage in MERGED_ANEW:
                    self.progress.start(item.stage, item.units)
                    self.progress.found(item.units)
            return found
        # of files that hold whole deltas the rank costs nothing
        full = self.request.whole and self.request.rank == "auto"
        cut = self.cut if not (full or procedure.refinement(len(self.inputs))) else Cut("full", 1.0)
        recorded = self._record(Stage.TEXT_INPUTS, self.text_encoder_keys, self._text_encoder_runs(examples))
        text_encoder = self._merge(Stage.TEXT_LAYERS, self.text_encoder_keys, procedure, cut, recorded)
        del recorded
        runs = self._unet_runs(examples, {key: layer.factors for key, layer in text_encoder.items()})
        recorded = self._record(Stage.UNET_INPUTS, self.unet_keys, runs)
        unet = self._merge(Stage.UNET_LAYERS, self.unet_keys, procedure, cut, recorded)
        layers = {**text_encoder, **unet}
        if self.keeping and self.processes.rank == 0:
            self.keeping.keep_layers(layers)
        return layers

    @property
    def cut(self) -> Cut:
        """The rank that was asked for."""
        return Cut(self.request.rank, self.request.kept)

    def _text_encoder_runs(self, examples: Sequence[Examples]) -> list[Run]:
        """Every teacher's prompts through the text encoder(s), and hundreds more from the bank: they cost next to nothing."""
        phrases, runs = phrases_of(self.request, self.inputs, Part.LEARN), []
        more = [Slot(k, Part.LEARN, phrases.draw(), {}) for k in range(RECORDED_PROMPTS)]
        for own in examples:
            asked = sorted({*own.called.prompts, *(own.teacher.prompt(slot) for slot in more)})
            # spread, as they are in the order of the alphabet, in which many have their form first and others their trigger
            prompts = [asked[k] for k in spread(len(asked), RECORDED_PROMPTS - 1)] + [self.request.prompts.negative]
            deltas = self._part(own.teacher, self.text_encoder_keys)
            runs.append(Run(own.teacher, deltas, len(prompts), encoding(self.host, prompts)))
        return runs

    def _unet_runs(self, examples: Sequence[Examples], merged: Mapping[str, Factors]) -> list[Run]:
        """Some of every teacher's points through the UNet, behind the merged text encoder(s), which will stand there."""
        text_encoder = {key: factors.to(self.host.device) for key, factors in merged.items()}
        runs = []
        for own in examples:
            few = recorded_points(own)
            deltas = {**text_encoder, **self._part(own.teacher, self.unet_keys)}
            runs.append(Run(own.teacher, deltas, len(few), denoising(self.host, few.x, few.t, few.prompts)))
        return runs

    def _part(self, teacher: Teacher, keys: Sequence[str]) -> dict[str, tuple[Factors, ...]]:
        together = self.predictor.together(teacher.active)
        return {key: together[key] for key in keys if key in together}

    def _record(self, stage: Stage, keys: Sequence[str], runs: Sequence[Run]) -> list[Recorded]:
        """The inputs of these layers in every run."""
        if not (runs and keys):
            return []
        self.progress.start(stage, sum(run.samples for run in runs))
        return self._recorded(runs, {self.serves[key]: self.memory.rows for key in keys})

    def _recorded(self, runs: Sequence[Run], capacity: Mapping[str, int]) -> list[Recorded]:
        """What enters layers in every run.

        Args:
            capacity: layer key -> rows to keep at most; the layers to record
        """
        rows = self.processes.each(
            len(runs),
            lambda k: record_run(self.host, runs[k], capacity, self.request.seed, self.progress),
            lambda k: self.progress.found(runs[k].samples, runs[k].teacher.name),
        )
        return [(run.teacher, own) for run, own in zip(runs, rows, strict=True)]

    def _merge(
        self, stage: Stage, keys: Sequence[str], procedure: Procedure, cut: Cut, recorded: Sequence[Recorded]
    ) -> dict[str, MergedLayer]:
        """Each of these layers merged."""
        self.progress.start(stage, len(keys))

        def merge(k: int) -> MergedLayer:
            layer = self.layer_merger.merge(keys[k], procedure, cut, recorded)
            self.progress.advance(1, keys[k])
            return replace(layer, factors=layer.factors.to("cpu"))

        layers = self.processes.each(len(keys), merge, lambda k: self.progress.found(1, keys[k]))
        return dict(zip(keys, layers, strict=True))

    def refine(
        self, layers: Mapping[str, MergedLayer], examples: Sequence[Examples], options: RefinementOptions
    ) -> Refined:
        """The contrastive objective at the model's output, from the layer-wise merge on."""
        held_back = self._follow(Stage.HOLDING_BACK, stopping_paths(self.request, self.memory.points))
        self.progress.start(Stage.REFINING, options.steps)
        start = {key: layer.factors for key, layer in layers.items()}
        seed = self.request.seed + (self.start.seed if self.start else 0)
        keeper = self.keeping.state if self.keeping else None
        refined = refine(self.predictor, start, examples, held_back, options, seed=seed, keeper=keeper)
        self.warnings += refined.trouble
        return refined

    def cut_refined(
        self, refined: Mapping[str, Factors], layers: Mapping[str, MergedLayer], examples: Sequence[Examples]
    ) -> dict[str, MergedLayer]:
        """The refined factors at the rank that was asked for, by what enters the layers of the refined model itself."""
        if not cuts(self.request):
            return {key: replace(layer, factors=refined[key]) for key, layer in layers.items()}
        here = {key: factors.to(self.host.device) for key, factors in refined.items()}
        runs = self._refined_runs(here, examples)
        self.progress.start(Stage.CUTTING, sum(run.samples for run in runs))
        # both stages at once, within the room of the larger one
        capacity = {self.serves[key]: max(LEAST_ROWS, self.memory.rows // 2) for key in layers}
        recorded, keys = self._recorded(runs, capacity), list(layers)

        def cut(k: int) -> MergedLayer:
            problem = self.layer_merger.problem(keys[k], recorded, self.host.device)
            truncated = self.cut(here[keys[k]].to(torch.float32), problem.called_inputs() or None)
            self.progress.advance(0, keys[k])
            return replace(layers[keys[k]], factors=truncated.factors.to("cpu"), kept=truncated.kept)

        return dict(zip(keys, self.processes.each(len(keys), cut), strict=True))

    def _refined_runs(self, refined: Mapping[str, Factors], examples: Sequence[Examples]) -> list[Run]:
        """Some of every teacher's points, and of the scenes, through the refined model.

        What it does only where several are called at once would otherwise have no effect that could be kept.
        """
        runs = []
        for own in examples:
            few = recorded_points(own)
            runs.append(Run(own.teacher, refined, len(few), denoising(self.host, few.x, few.t, few.prompts)))
        scenes = make_scenes([own.called for own in examples], windows=2)
        if scenes:
            some = [scenes[i] for i in spread(len(scenes), RECORDED_POINTS).tolist()]
            x, t = torch.stack([scene.beside("x") for scene in some]), torch.stack([scene.t for scene in some])
            everyone = tuple(sorted({concept for scene in some for concept in scene.subjects}))
            teacher = Teacher("several in one picture", None, everyone)
            runs.append(Run(teacher, refined, len(some), denoising(self.host, x, t, [scene.prompt for scene in some])))
        return runs

    def rounded(self, factors: Mapping[str, Factors]) -> dict[str, Factors]:
        """Factors as the file will hold them, on the model's device; a file of whole deltas rounds only those."""
        dtype = torch.float32 if self.request.whole else DTYPES[self.request.precision]
        rounded = {key: f.to(dtype) for key, f in factors.items()}
        for key, f in rounded.items():
            if not (f.up.isfinite().all() and f.down.isfinite().all()):
                raise LoraclrError(f"The merged {key} does not fit into {self.request.precision}: choose bf16 or fp32.")
        return {key: f.to(self.host.device) for key, f in rounded.items()}

    def measure(self, factors: Mapping[str, Factors] | None) -> tuple[Retention, Retention | None, Recognition | None]:
        """Retention of all tags together and of the merge (if any), and whom the merge draws, on words and paths that nothing was
        learnt from or stopped by."""
        plan = measuring_paths(self.request, self.memory.points)
        examples = self._follow(Stage.TESTING, plan)
        known = self.followed.before if self.followed else None
        asked = measuring_evaluations(
            self.teachers, plan, len(self.inputs), merged=factors is not None, all_tags=known is None
        )
        self.progress.start(Stage.MEASURING, asked)
        drift, before = known or self._without_a_merge(examples)
        if self.followed:
            self.followed.before = drift, before
        if factors is None:
            return before, None, None
        after = measure(self.predictor, factors, examples, single_drift=drift)
        candidates = gather_candidates(self.predictor, examples)
        return before, after, recognise(self.predictor, factors, candidates, examples)

    def _without_a_merge(self, examples: Sequence[Examples]) -> tuple[float | None, Retention]:
        """How much the LoRAs, each alone, change on prompts without triggers, and retention of all tags together."""
        drift = drift_of_singles(self.predictor, examples)
        everyone = self.predictor.together(range(len(self.inputs)))
        return drift, measure(self.predictor, everyone, examples, single_drift=drift)
