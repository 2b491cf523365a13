"""A finished merge, and the checkpoint it was made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import attention_projections
from ..model import SD1, Factors, Family, Host
from ..recording import InputLora
from ..request import MergeRequest
from .report import MergeReport


@dataclass(frozen=True)
class Target:
    """The checkpoint a merge was made on, as far as files need to know it; the model is not held.

    Attributes:
        family: of the model
        host: name of the host that held it
        checkpoint: what the host calls it
        path: the file or folder it was loaded from
        prediction_type: "epsilon" or "v_prediction"
        shapes: layer key -> shape of the weight, `[d_out, d_in]`, `[d_out, c_in, k, k]` or `[d]`; of every layer that a file
            of the merge may name
        clip_skip: the layer of the text encoder that prompts were read from, counted from the last, 1; 0 where the family
            leaves no choice
    """

    family: Family
    host: str
    checkpoint: str
    path: Path
    prediction_type: str
    shapes: Mapping[str, tuple[int, ...]]
    clip_skip: int = 0

    @classmethod
    def of(cls, host: Host, factors: Mapping[str, Factors]) -> Target:
        """What there is to know of a host's model for files of these layers."""
        layers = host.layers()
        keys = {other for key in factors for other in (key, *attention_projections(key)) if other in layers}
        shapes = {key: tuple(layers[key].weight.shape) for key in sorted(keys)}
        skip = host.clip_skip if host.family is SD1 else 0
        return cls(host.family, host.name, host.checkpoint, host.checkpoint_path, host.prediction_type, shapes, skip)


@dataclass(frozen=True)
class Begun:
    """The finished merge that another one went on from.

    Attributes:
        hash: of its factors
        concepts: labels of the concepts that were in it, in the order in which the merge numbers them
        steps: that were asked for; 0: as many as are usual
    """

    hash: str
    concepts: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class Merge:
    """A finished merge, not yet a file; it holds all that its files need.

    Attributes:
        request: what was asked, concepts in the order given
        factors: layer key -> factors, rounded to the file's precision; what `apply` runs is what the file will hold. In fp32
            for files of whole deltas, which are rounded when they are written
        inputs: the LoRAs, in the order of the request
        target: the checkpoint it was made on
        report: what it did
        begun: the finished merge that it went on from, if it did
    """

    request: MergeRequest
    factors: Mapping[str, Factors]
    inputs: tuple[InputLora, ...]
    target: Target
    report: MergeReport
    begun: Begun | None = None

    def light(self) -> Merge:
        """The same on the CPU, without what only merging and drawing needed: a result may wait for hours."""
        inputs = tuple(replace(lora, file=lora.file.without_layers(), deltas={}) for lora in self.inputs)
        return replace(self, factors={key: f.to("cpu") for key, f in self.factors.items()}, inputs=inputs)
