"""What a loaded model is to a merge: the host that holds it, its layers, low-rank changes of them, and its memory.

host, families     what is asked of whatever holds the model, and the families of models
substitution       the model run with changed weights, which are never written
low_rank           factors and their algebra
memory             how a budget is spent, and what a graphics card has left
processes          one merge in several processes
"""

from .families import FAMILIES, OTHER_CHANNELS, REFINER, SD1, SD2, SDXL, Family
from .host import Conditioning, Host
from .low_rank import (
    Deltas,
    Factors,
    Truncation,
    balanced,
    column_basis,
    concatenate,
    evened,
    exact,
    factored,
    on_device,
    orthonormal_basis,
    precise,
    together,
    truncate,
    whole,
    zero,
)
from .memory import LEAST_ROWS, MEGABYTE, MemoryPlan, free_cached, free_on_card, is_out_of_memory, plan_memory
from .processes import ALONE, Group, Processes
from .substitution import INPAINTING_CHANNELS, LATENT_CHANNELS, Layer, adaptable_layers, always_one, substituted

__all__ = [
    "ALONE",
    "Conditioning",
    "Deltas",
    "FAMILIES",
    "OTHER_CHANNELS",
    "SDXL",
    "Factors",
    "Family",
    "Group",
    "Host",
    "INPAINTING_CHANNELS",
    "LATENT_CHANNELS",
    "Layer",
    "LEAST_ROWS",
    "MEGABYTE",
    "MemoryPlan",
    "Processes",
    "REFINER",
    "SD1",
    "SD2",
    "Truncation",
    "adaptable_layers",
    "always_one",
    "balanced",
    "column_basis",
    "concatenate",
    "evened",
    "exact",
    "factored",
    "free_cached",
    "free_on_card",
    "is_out_of_memory",
    "on_device",
    "orthonormal_basis",
    "plan_memory",
    "precise",
    "substituted",
    "together",
    "truncate",
    "whole",
    "zero",
]
