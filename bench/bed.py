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
        self._learning = Span()

    def timed(
        self, method: str, options: Mapping[str, object], *, rank: str = "auto", kind: type[Stages] = Stages
    ) -> tuple[Made, Span]:
        """`merge`, and what it took, the teachers' paths included where it needs them, whoever followed them first."""
        clock = self.progress = Clock()
        made = self.merge(method, options, rank=rank, kind=kind)
        clock.finish()
        shared = Span()
        if Stage.RECORDING in clock.spans:
            self._learning = clock.spans[Stage.RECORDING]
        elif find_method(method).records:
            shared = self._learning
        return made, clock.total() + shared
