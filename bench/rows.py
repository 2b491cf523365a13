"""The rows of the quality table: each is one way to have several concepts in one model.

What a source tunes on validation data, a scale, is tuned here by retention, on paths that nothing was learnt from; nothing
else is tuned, of ours neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.attended import AttendedRows
from bench.bed import Bed
from bench.clock import Span
from bench.extended import BATCH, LEARNING_RATE, PICTURES, TRAINING_STEPS, extended_conditioning
from bench.iterated import IterIS, RegMeanPlusPlus
from bench.omg import SHARED, omg
from bench.protocol import SIDE, Drawer
from bench.world import Sprite
from lib_loraclr.merge import Made, Stages
from lib_loraclr.model import Deltas, Host
from lib_loraclr.progress import Stage
from lib_loraclr.recording import load_input
from lib_loraclr.request import Concept
from lib_loraclr.solving import find_method

#: scales that are tried where a source tunes one
SCALES = (0.3, 0.6, 1.0, 1.7)


@dataclass(frozen=True)
class Row:
    """A row whose model is a merge.

    Attributes:
        method, options: of a request
        ours: whether the rank is cut as a user's would be; others keep all of it
        scales: tried, the one with the highest mean retention is taken
        kind: stages that solve in another order
        source: where a method comes from that is not registered
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    ours: bool = False
    scales: tuple[float, ...] = ()
    kind: type[Stages] = Stages
    source: str = ""

    @property
    def origin(self) -> str:
        """The paper or tool that it is from."""
        return self.source or find_method(self.method).source

    def asked(self) -> dict[str, object]:
        """What a cell's figures depend on."""
        return {"method": self.method, "options": dict(self.options), "scales": list(self.scales)}

    def made(self, bed: Bed) -> tuple[Made, dict[Stage, Span], dict[str, object]]:
        """The merge, what each of its stages took, and what was chosen."""

        def merge(**options: object) -> tuple[Made, dict[Stage, Span]]:
            rank = "auto" if self.ours else "full"
            return bed.timed(self.method, {**self.options, **options}, rank=rank, kind=self.kind)

        if not self.scales:
            return *merge(), {}
        tried = {scale: merge(scale=scale) for scale in self.scales}
        retentions = {scale: bed.retention(made.factors).mean for scale, (made, _) in tried.items()}
        best = max(retentions, key=lambda scale: retentions[scale])
        return *tried[best], {"scale": best, "retention by scale": retentions}


@dataclass(frozen=True)
class Given:
    """A row whose model is a finished LoRA, made elsewhere: by another program, or trained on all pictures at once.

    Attributes:
        path: its file
    """

    path: Path

    def asked(self) -> dict[str, object]:
        """What a cell's figures depend on."""
        return {"file": hashlib.sha256(self.path.read_bytes()).hexdigest()}

    def made(self, host: Host) -> Made:
        """As a merge, of no rank that anybody chose."""
        factors = load_input(Concept(str(self.path)), host).deltas
        ranks = [delta.rank for delta in factors.values()]
        return Made("given", factors, sum(ranks) / len(ranks), {})


@dataclass(frozen=True)
class Drawn:
    """A row that is no merge but a way to draw with the LoRAs at hand.

    Attributes:
        drawer: what draws, of a test bed, the concepts and the seed of the run
        origin: the paper that it is from
        options: what it depends on
    """

    drawer: Callable[[Bed, Sequence[Sprite], int], AbstractContextManager[Drawer]]
    origin: str
    options: Mapping[str, object] = field(default_factory=dict)

    def asked(self) -> dict[str, object]:
        """What a cell's figures depend on."""
        return {"drawn": self.origin, "options": dict(self.options)}


def _deltas(bed: Bed) -> dict[str, Deltas]:
    """What each LoRA changes, by its concept's words."""
    return {lora.concept.trigger: lora.deltas for lora in bed.inputs}


def _extended(bed: Bed, sprites: Sequence[Sprite], seed: int) -> AbstractContextManager[Drawer]:
    return extended_conditioning(
        bed.host, _deltas(bed), sprites, bed.request.prompts.templates, size=(SIDE, SIDE), seed=seed
    )


#: models that are no merge
BASE, ALONE = "base model", "each LoRA alone"
#: row -> how it is made; data-free first, then what looks at inputs, then ours
ROWS: dict[str, Row] = {
    "all tags": Row("weighted_sum"),
    "average": Row("average"),
    "TIES": Row("ties", scales=SCALES),
    "DARE": Row("dare", scales=SCALES),
    "kohya SVD": Row("kohya_svd", {"new_rank": 64}),
    "SuperMerger": Row("supermerger"),
    "KnOTS": Row("knots", scales=SCALES),
    "Core Space TSV": Row("core_space", {"isotropic": False}, scales=SCALES),
    "Core Space TSV, isotropic": Row("core_space", scales=SCALES),
    "Iso-C": Row("iso_c", scales=SCALES),
    "ACE": Row("ace", scales=SCALES),
    "RegMean": Row("regmean"),
    "RegMean++": Row("regmean", kind=RegMeanPlusPlus, source="RegMean++, arXiv 2508.03121"),
    "IterIS": Row("regmean", kind=IterIS, source="IterIS, arXiv 2411.15231"),
    "gradient fusion": Row("gradient_fusion"),
    "LoRACLR as published": Row("paper"),
    "closed form": Row("ridge", ours=True),
    "closed form, rows by attention": Row(
        "ridge", ours=True, kind=AttendedRows, source="the outlook of LoRACLR, arXiv 2412.09622"
    ),
    "closed form, shared space": Row("shared_space", ours=True),
    "LoRACLR layers": Row("contrastive", {"effort": "layers"}, ours=True),
    "LoRACLR fast": Row("contrastive", {"effort": "fast"}, ours=True),
    "LoRACLR balanced": Row("contrastive", {"effort": "balanced"}, ours=True),
    "LoRACLR thorough": Row("contrastive", {"effort": "thorough"}, ours=True),
}
#: ways to draw
DRAWN: dict[str, Drawn] = {
    "P+": Drawn(
        _extended,
        "P+, arXiv 2303.09522",
        {"pictures": PICTURES, "steps": TRAINING_STEPS, "batch": BATCH, "learning rate": LEARNING_RATE},
    ),
    "OMG": Drawn(
        lambda bed, sprites, seed: omg(bed.host, _deltas(bed)),
        "OMG, arXiv 2403.10983, and github.com/kongzhecn/OMG",
        {"shared": SHARED},
    ),
}
#: all of the table
LINES = (ALONE, BASE, *ROWS, *DRAWN)
#: those that take minutes, and are not among the default's rows for every number of concepts
SLOW = ("LoRACLR thorough", *DRAWN)
