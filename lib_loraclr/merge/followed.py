"""What was recorded of the LoRAs alone: the same for every merge of them, however often they are merged."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from ..model import Host
from ..progress import Stage
from ..recording import Examples, InputLora
from ..refining import Retention
from ..request import MergeRequest


@dataclass
class Followed:
    """Held in memory from one merge to the next; a merge fills it, and asks for nothing again that is there.

    Attributes:
        asked: what it was recorded for (`recorded_for`); None while it is empty
        examples: stage -> what every teacher predicts, in the teachers' order
        before: what was measured on them without a merge: how much the LoRAs, each alone, change on prompts without triggers
            (`drift_of_singles`), and retention with all tags in one prompt
    """

    asked: Hashable = None
    examples: dict[Stage, list[Examples]] = field(default_factory=dict)
    before: tuple[float | None, Retention] | None = None

    def begin(self, asked: Hashable) -> None:
        """Forget what was recorded for anything else."""
        if self.asked != asked:
            self.asked, self.examples, self.before = asked, {}, None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        tensors = [
            tensor
            for every in self.examples.values()
            for own in every
            for tensor in (own.x, own.t, own.target, own.effect, own.other, own.has_other)
            if tensor is not None
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def recorded_for(request: MergeRequest, inputs: Sequence[InputLora], host: Host, points: int) -> Hashable:
    """All that teachers' predictions depend on. A concept's importance is not part of it, nor are method and rank.

    Args:
        inputs: in the order of the merge's own numbers
        host: as the merge will ask it
        points: of a teacher that there is room for
    """
    concepts = tuple((lora.file.hash, replace(lora.concept, importance=1.0)) for lora in inputs)
    asked = (request.prompts, request.recording, request.seed, points)
    return concepts, asked, (host.checkpoint_path, host.clip_skip, host.prediction_type)
