"""A test bed: merges of one set of LoRAs from one recording, each with what it would take by itself."""

from __future__ import annotations

from collections.abc import Mapping

from bench.clock import Clock, Span
from lib_loraclr.merge import Made, Several, Stages
from lib_loraclr.model import Host
from lib_loraclr.progress import Stage
from lib_loraclr.request import MergeRequest
from lib_loraclr.solving import find_method


class Bed(Several):
    """One set of LoRAs on one model, with a clock."""

    def __init__(self, request: MergeRequest, host: Host) -> None:
        super().__init__(request, host)
        self._recorded: dict[Stage, Span] = {}

    def timed(
        self, method: str, options: Mapping[str, object], *, rank: str = "auto", kind: type[Stages] = Stages
    ) -> tuple[Made, dict[Stage, Span]]:
        """`merge`, and what each stage took; teachers' paths too, where it needs them, whoever followed them first."""
        clock = self.progress = Clock()
        made = self.merge(method, options, rank=rank, kind=kind)
        clock.finish()
        needed = {Stage.RECORDING} if find_method(method).records else set()
        if Stage.REFINING in clock.spans:
            needed.add(Stage.HOLDING_BACK)
        self._recorded |= {stage: clock.spans[stage] for stage in needed if stage in clock.spans}
        return made, {stage: self._recorded[stage] for stage in needed} | clock.spans
