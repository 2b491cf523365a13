"""Every method on the same LoRAs, side by side: what each keeps of them, and pictures of the best.

The command line and the WebUI's tab compare by this; each shows it in its own way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..model import Factors
from ..output import Pictures, PreviewOptions, draw_pictures
from ..progress import PlannedStage, Stage
from ..recording import make_teachers
from ..refining import Retention
from ..request import MergeRequest
from ..solving import METHODS, Procedure, all_baselines
from .several import Made, Several
from .stage_plan import evaluations, measuring_paths, plan_stages, retention_evaluations

#: of how many the pictures are drawn
DRAWN = 3
#: what one method has read and recorded, and the next ones need not
_ONCE = {Stage.READING, Stage.RECORDING, Stage.HOLDING_BACK, Stage.TESTING}


@dataclass(frozen=True)
class Outcome:
    """What one method came to.

    Attributes:
        made: its merge, on the CPU; without factors where it will not be drawn (`placed`)
        retention: of every concept, in the order of `Several.inputs`
        seconds: that it took, without measuring; of the first that looks at inputs with those of recording
    """

    made: Made
    retention: Retention
    seconds: float


def comparable() -> list[str]:
    """The names of all methods: those that every door offers, and what others do instead."""
    return [*METHODS, *all_baselines()]


def plan_comparison(
    request: MergeRequest, asked: Mapping[str, Mapping[str, object]], *, layers: tuple[int, int]
) -> list[list[PlannedStage]]:
    """What each of the methods will do, in their order.

    Args:
        request: the concepts, and how they are recorded
        asked: method -> its options
        layers: as of `plan_stages`

    Raises:
        LoraclrError: an unknown method, or an option that it does not take
    """
    teachers, number = make_teachers(request.concepts, request.prompts), len(request.concepts)
    test, known, planned = measuring_paths(request), set(), []
    for method, options in asked.items():
        own = replace(request, method=method, options=dict(options), rank="auto")
        procedure = Procedure.of(own)
        refinement = procedure.refinement(number)
        stages = plan_stages(own, procedure.method, refinement, teachers, layers=layers, known=known)
        # of a comparison nobody asks who is taken for whom
        measured = retention_evaluations(teachers, test, number, alone=Stage.TESTING not in known)
        planned.append(
            [evaluations(item.stage, measured) if item.stage is Stage.MEASURING else item for item in stages]
        )
        known |= _ONCE & {item.stage for item in stages}
    return planned


def outcome_of(several: Several, method: str, options: Mapping[str, object] | None = None) -> Outcome:
    """Merge by one method, and measure what is left.

    Args:
        options: of the method; None for its defaults

    Raises:
        LoraclrError: as `merge_loras`
        Interrupted: the user asked to stop
    """
    begun = time.perf_counter()
    made = several.merge(method, options or {})
    seconds = time.perf_counter() - begun
    retention = several.retention(made.factors)
    return Outcome(replace(made, factors=_moved(made.factors, "cpu")), retention, seconds)


def placed(outcomes: Sequence[Outcome], another: Outcome) -> list[Outcome]:
    """The outcomes with another one among them, the best first, by mean retention.

    Of those that will not be drawn the factors are let go of: together they could be more than there is room for.
    """
    ranked = sorted([*outcomes, another], key=lambda outcome: -outcome.retention.mean)
    others = [replace(outcome, made=replace(outcome.made, factors={})) for outcome in ranked[DRAWN:]]
    return [*ranked[:DRAWN], *others]


def drawn(several: Several, outcome: Outcome, options: PreviewOptions) -> Pictures:
    """The pictures of one of the best.

    Raises:
        Interrupted: the user asked to stop
    """
    made = replace(outcome.made, factors=_moved(outcome.made.factors, several.host.device))
    merge = several.finished(made, outcome.retention)
    return draw_pictures(merge, several.host, options, several.progress)


def _moved(factors: Mapping[str, Factors], device: object) -> dict[str, Factors]:
    return {key: own.to(device) for key, own in factors.items()}
