"""A finished merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..model import Factors
from ..recording import InputLora
from ..request import MergeRequest
from .report import MergeReport


@dataclass(frozen=True)
class Merge:
    """A finished merge, not yet a file.

    Attributes:
        request: what was asked, concepts in the order given
        factors: layer key -> factors, rounded to the file's precision; what `apply` runs is what the file will hold. In fp32
            for files of whole deltas, which are rounded when they are written
        inputs: the LoRAs, in the order of the request
        report: what it did
    """

    request: MergeRequest
    factors: Mapping[str, Factors]
    inputs: tuple[InputLora, ...]
    report: MergeReport
