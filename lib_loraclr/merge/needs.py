"""What a merge will take of RAM, of the graphics card and of the disk, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..files import DTYPES
from ..model import MEGABYTE, Host
from ..recording import InputLora
from ..refining import needs_copies
from ..request import MergeRequest

#: copies of the factors that the refinement keeps on the device in fp32: themselves, their gradients, Muon's momentum and its
#: directions, and the start that it is pulled back to; and where the model is run with copies in half precision, these and theirs
REFINED_COPIES, HALF_COPIES = 5, 1
_FP32 = 4


@dataclass(frozen=True)
class MemoryNeeds:
    """In MB, beside the checkpoint and what evaluating it takes.

    Attributes:
        ram: of the computer
        device: of the graphics card; 0 where there is none
        file: of what is saved, at most
    """

    ram: float
    device: float
    file: float


def memory_needs(request: MergeRequest, inputs: Sequence[InputLora], host: Host, *, refines: bool) -> MemoryNeeds:
    """Reckoned from the shapes of the inputs.

    Args:
        refines: whether the merge is refined at the model's output
    """
    columns: dict[str, list[int]] = {}
    given_numbers = 0
    for given in inputs:
        for key, factors in given.deltas.items():
            columns.setdefault(key, [0, sum(factors.shape), min(factors.shape)])[0] += factors.rank
            given_numbers += factors.rank * sum(factors.shape)
    limit = int(request.rank) if request.rank.isdecimal() else None
    kept = sum(min(rank, most, limit or rank) * both for rank, both, most in columns.values())
    # before it is cut, at the end, a refined merge has all of its rank
    whole = sum(min(rank, most) * both for rank, both, most in columns.values())
    bundled = sum(t.numel() * t.element_size() for given in inputs for t in given.file.embeddings.values())
    itemsize = DTYPES[request.precision].itemsize
    file = (kept * itemsize + bundled) / MEGABYTE
    saved = file
    if request.save_as == "full":
        saved = sum(math.prod(host.layers()[key].shape) for key in columns) * itemsize / MEGABYTE
    elif request.save_as == "checkpoint" and host.checkpoint_path.is_file():
        saved = host.checkpoint_path.stat().st_size / MEGABYTE
    # all LoRAs at once are on the card only where "all tags" is measured or drawn, and nothing is refined then
    lying = _FP32 * given_numbers / MEGABYTE
    copies = REFINED_COPIES + HALF_COPIES * needs_copies(host)
    refined = _FP32 * whole * copies / MEGABYTE if refines else 0.0
    working = max(lying, refined) + _FP32 * kept / MEGABYTE
    on_card = host.device.type != "cpu"
    ram = request.memory_mb + file * 2 + lying + (0 if on_card else working)
    return MemoryNeeds(ram, working if on_card else 0.0, saved)
