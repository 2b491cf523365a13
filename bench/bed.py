"""A test bed: what all merges of one set of LoRAs share, so that a row costs what is its own.

Teachers' paths are followed once, and every merge starts from the same recordings; retention is measured on the same paths. The
stages are the product's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.clock import Clock, Span
from lib_loraclr.merge.examination import merged_keys
from lib_loraclr.merge.stage_plan import measuring_paths
from lib_loraclr.merge.stages import Stages
from lib_loraclr.model import Factors, Host
from lib_loraclr.progress import Stage
from lib_loraclr.recording import Examples, PathPlan, load_inputs, served_layers, with_size
from lib_loraclr.refining import Retention, drift_of_singles, measure
from lib_loraclr.request import MergeRequest
from lib_loraclr.solving import Procedure


@dataclass(frozen=True)
class Made:
    """A merge.

    Attributes:
        factors: layer key -> what the file would hold
        took: what it would take by itself, the teachers' paths included where it needs them
        rank: mean
        notes: figures of the method, mean over the layers that have them
    """

    factors: Mapping[str, Factors]
    took: Span
    rank: float
    notes: Mapping[str, float]


class Recorded(Stages):
    """Stages that follow no path twice.

    `followed` is shared by all of a bed: stage -> its examples.
    """

    followed: dict[Stage, list[Examples]]

    def _follow(self, stage: Stage, plan: PathPlan) -> list[Examples]:
        if stage not in self.followed:
            self.followed[stage] = super()._follow(stage, plan)
        return self.followed[stage]


class Bed:
    """One set of LoRAs on one model."""

    def __init__(self, host: Host, request: MergeRequest) -> None:
        """
        Args:
            request: the concepts, and how they are recorded; its method is not used
        """
        self.host = host
        self.inputs = sorted(load_inputs(request.concepts, host), key=lambda lora: lora.order)
        recording = with_size(request.recording, [lora.file.metadata for lora in self.inputs], host.default_size)
        self.request = replace(request, concepts=tuple(lora.concept for lora in self.inputs), recording=recording)
        self.serves = served_layers(host, merged_keys(self.inputs))
        self._followed: dict[Stage, list[Examples]] = {}
        self._learning = Span()
        self._drift: float | None = None

    def stages(self, clock: Clock, request: MergeRequest, kind: type[Recorded] = Recorded) -> Recorded:
        """The stages of a merge that share this bed's recordings."""
        stages = kind(request, self.inputs, self.host, self.serves, clock)
        stages.followed = self._followed
        return stages

    def merge(
        self, method: str, options: Mapping[str, object], *, rank: str = "auto", kind: type[Recorded] = Recorded
    ) -> Made:
        """As `merge_loras` does it.

        Args:
            rank: of a request; "full" for methods that are not to lose by a cut that they do not have
            kind: stages that solve in another order
        """
        request = replace(self.request, method=method, options=dict(options), rank=rank)
        procedure, clock = Procedure.of(request), Clock()
        stages, records = self.stages(clock, request, kind), procedure.method.records
        examples = stages.learn() if records else []
        clock.finish()
        # the first to need them waits for them; the others are told as if they had
        self._learning = clock.spans.get(Stage.RECORDING, self._learning)
        layers = stages.solve(procedure, examples)
        refinement = procedure.refinement(len(self.inputs))
        refined = stages.refine(layers, examples, refinement) if refinement else None
        layers = stages.cut_refined(refined.factors, layers, examples) if refined else layers
        clock.finish()
        factors = stages.rounded({key: layer.factors for key, layer in layers.items()})
        shared = self._learning if records and Stage.RECORDING not in clock.spans else Span()
        names = {name for layer in layers.values() for name in layer.notes}
        notes = {name: _mean([layer.notes[name] for layer in layers.values() if name in layer.notes]) for name in names}
        if refined:
            notes["steps"] = refined.steps
        ranks = [own.rank for own in factors.values() if own.shape[1] > 1]
        return Made(factors, clock.total() + shared, _mean(ranks), notes)

    def retention(self, factors: Mapping[str, Factors]) -> Retention:
        """Of every concept, in this bed's order, on paths that nothing was learnt from."""
        stages = self.stages(Clock(), self.request)
        examples = stages._follow(Stage.TESTING, measuring_paths(self.request, stages.memory.points))
        if self._drift is None:
            self._drift = drift_of_singles(stages.predictor, examples)
        return measure(stages.predictor, factors, examples, single_drift=self._drift)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
