"""Several merges of the same LoRAs from one recording: what a comparison of methods is made of.

Teachers' paths are followed once, and every merge starts from the same examples; retention is measured on the same paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..model import Factors, Host
from ..output import ConceptReport, Merge, MergeReport, Target
from ..progress import Progress, Stage
from ..recording import bundled_embeddings, load_inputs, recorded_clip_skip, served_layers
from ..refining import Retention, drift_of_singles, measure
from ..request import MergeRequest
from ..solving import Procedure
from .examination import examine, merged_keys
from .followed import Followed
from .merging import completed, mean, notes_of, ranks_of
from .stage_plan import measuring_paths, retention_evaluations
from .stages import Stages


@dataclass(frozen=True)
class Made:
    """A merge by one method.

    Attributes:
        method: which
        factors: layer key -> what the file would hold, on the model's device
        rank: mean
        notes: figures of the method, the mean over the layers that have them; `steps` of a refinement
    """

    method: str
    factors: Mapping[str, Factors]
    rank: float
    notes: Mapping[str, float]


class Several:
    """One set of LoRAs on one model.

    Attributes:
        inputs: the LoRAs, in the order of the merge
        request: completed by what the files say, with its concepts in that order
        progress: is told how far each merge is, and may interrupt
    """

    def __init__(self, request: MergeRequest, host: Host, progress: Progress | None = None) -> None:
        """
        Args:
            request: the concepts, and how they are recorded; its method is not used

        Raises:
            LoraclrError: as `merge_loras`
        """
        request.check()
        self.host, self.progress = host, progress or Progress()
        loaded = load_inputs(request.concepts, host, self.progress)
        named = completed(request, loaded, host)
        self.serves = served_layers(host, merged_keys(loaded))
        examine(named, loaded, host, self.serves).require_possible()
        self.inputs = sorted(loaded, key=lambda lora: lora.order)
        self.request = replace(named, concepts=tuple(lora.concept for lora in self.inputs))
        self._followed = Followed()
        self._drift: float | None = None

    def merge(
        self, method: str, options: Mapping[str, object], *, rank: str = "auto", kind: type[Stages] = Stages
    ) -> Made:
        """As `merge_loras` does it, without measuring.

        Args:
            rank: of a request; "full" for methods that are not to lose by a cut that they do not have
            kind: stages that solve in another order
        """
        request = replace(self.request, method=method, options=dict(options), rank=rank)
        procedure = Procedure.of(request)
        with self._as_recorded():
            stages = self._stages(request, kind)
            layers, refined = stages.run(procedure)
            factors = stages.rounded({key: layer.factors for key, layer in layers.items()})
        notes = notes_of(layers) | ({"steps": refined.steps} if refined else {})
        return Made(method, factors, mean(ranks_of(layers)), notes)

    def retention(self, factors: Mapping[str, Factors]) -> Retention:
        """Of every concept, in the order of `inputs`, on words and paths that nothing was learnt from."""
        with self._as_recorded():
            stages = self._stages(self.request, Stages)
            plan = measuring_paths(self.request, stages.memory.points)
            examples = stages._follow(Stage.TESTING, plan)
            alone = self._drift is None
            asked = retention_evaluations(stages.teachers, plan, len(self.inputs), alone=alone)
            self.progress.start(Stage.MEASURING, asked)
            if alone:
                self._drift = drift_of_singles(stages.predictor, examples)
            return measure(stages.predictor, factors, examples, single_drift=self._drift)

    def finished(self, made: Made, retention: Retention) -> Merge:
        """A merge as far as drawing it needs one."""
        request = replace(self.request, method=made.method, options={})
        concepts = zip(self.request.concepts, retention.concepts, strict=True)
        told = tuple(ConceptReport(concept.label, concept.trigger, None, kept) for concept, kept in concepts)
        report = MergeReport(made.method, "", told, None, retention.base_drift)
        return Merge(request, made.factors, tuple(self.inputs), Target.of(self.host, made.factors), report)

    def _stages(self, request: MergeRequest, kind: type[Stages]) -> Stages:
        stages = kind(request, self.inputs, self.host, self.serves, self.progress)
        stages.go_by(self._followed)
        return stages

    @contextmanager
    def _as_recorded(self) -> Iterator[None]:
        skip, _ = recorded_clip_skip(self.request.recording.clip_skip, self.inputs, self.host)
        with self.host.knowing(bundled_embeddings(self.inputs)), self.host.skipping(skip):
            yield
