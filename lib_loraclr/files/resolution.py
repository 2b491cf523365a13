"""The size of the pictures that a LoRA was trained on, as its metadata tell it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

#: metadata that name it, in the order in which they are believed: "(512, 768)", "512x768", "512"
_NAMED = ("ss_resolution", "modelspec.resolution")
#: sizes are multiples of this
STEP = 64
#: sides that pictures to train on have
_SIDES = range(STEP, 4097)


def trained_size(metadata: Mapping[str, Any]) -> int:
    """The side of a square of as many pixels, to the nearest multiple of 64; 0 where nothing tells."""
    for name in _NAMED:
        sides = [int(number) for number in re.findall(r"\d+", str(metadata.get(name, "")))[:2]]
        if sides and all(side in _SIDES for side in sides):
            return max(STEP, round(math.sqrt(sides[0] * sides[-1]) / STEP) * STEP)
    return 0
