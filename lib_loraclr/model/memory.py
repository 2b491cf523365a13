"""How the memory budget is spent: on recorded rows and on teachers' predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import LoraclrError

MEGABYTE = 1 << 20
HALF = 2  # bytes of a half-precision number

#: shares of the budget; what is left is for one layer's dense matrices and for what the allocator wastes
ROWS_SHARE, POINTS_SHARE = 0.55, 0.25
#: rows per layer and recording: fewer say nothing about a layer, more change nothing that was measured
LEAST_ROWS, MOST_ROWS = 16, 256
#: points of a teacher below which there is little to learn from
LEAST_POINTS = 16
#: tensors of the size of a latent that each point keeps (`recording.Examples`)
TENSORS_PER_POINT = 3


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is spent.

    Attributes:
        rows: of inputs, per layer and recording
        points: per teacher
    """

    rows: int
    points: int


def plan_memory(
    budget_mb: int, columns: Mapping[str, int], *, recordings: int, points: int, latent_numbers: int
) -> MemoryPlan:
    """Spend a budget.

    Args:
        budget_mb: in MB
        columns: `d_in` of every recording of the largest stage, by layer key
        recordings: how many recordings each layer has (one per teacher)
        points: that each teacher is to have
        latent_numbers: numbers in one latent, `c * h * w`

    Raises:
        LoraclrError: not even the least is within the budget
    """
    budget = budget_mb * MEGABYTE
    row = sum(columns.values()) * HALF * recordings
    point = recordings * latent_numbers * HALF * TENSORS_PER_POINT
    least = max(LEAST_ROWS * row / ROWS_SHARE, LEAST_POINTS * point / POINTS_SHARE)
    if least > budget:
        raise LoraclrError(
            f"The memory budget of {budget_mb} MB is too small for {recordings} recordings of {len(columns)} inputs: "
            f"give at least {math.ceil(least / MEGABYTE)} MB, or merge fewer LoRAs at a time."
        )
    rows = int(budget * ROWS_SHARE / row) if row else MOST_ROWS
    return MemoryPlan(min(MOST_ROWS, rows), min(points, int(budget * POINTS_SHARE / point)))


def free_on_card(device: torch.device) -> int | None:
    """Bytes that can still be had on a graphics card, those that torch holds for this process and does not use included.

    None for RAM, which has a budget instead.
    """
    if device.type != "cuda":
        return None
    # the WebUI's device has no number, and torch 2.1 wants one here
    number = torch.cuda.current_device() if device.index is None else device.index
    free, _ = torch.cuda.mem_get_info(number)
    return free + torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)


def free_cached(device: torch.device) -> None:
    """Give back what torch holds for this process on a graphics card and does not use: in pieces that fit nothing large."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


#: what says that memory ran out and is not torch's own error: its libraries', Apple's, and the WebUI's Doggettx attention
_RAN_OUT = ("CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory", "Not enough memory, use lower resolution")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether what went wrong is that a graphics card had too little memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _RAN_OUT)
