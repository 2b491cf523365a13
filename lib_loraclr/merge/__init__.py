"""The merge, from a request to a result that can be saved.

merging            `merge_loras`, which reads from top to bottom
stages             its stages
"""

from .merging import measure_loras, merge_loras
from .stages import (
    HELD_BACK_KEPT,
    HELD_BACK_PATHS,
    HELD_BACK_STEPS,
    RECORDED_POINTS,
    SCALE_POINTS,
    TEST_PATHS,
    TEST_STEPS,
    recording_plan,
    served_layers,
)

__all__ = [
    "HELD_BACK_KEPT",
    "HELD_BACK_PATHS",
    "HELD_BACK_STEPS",
    "RECORDED_POINTS",
    "SCALE_POINTS",
    "TEST_PATHS",
    "TEST_STEPS",
    "measure_loras",
    "merge_loras",
    "recording_plan",
    "served_layers",
]
