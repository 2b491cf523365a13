"""How a batch fits into the memory there is: some samples at a time, their activations kept or recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..model import is_out_of_memory
from ..recording import Predictor
from .trained import TrainedFactors

#: bytes, where not even the card knows how many it would have taken
TOO_MANY = 1 << 62
#: on a graphics card: copies of the factors that are made after the look at what fits (momentum, the start, and two more while
#: it steps)
_STATES = 4
#: what the largest block of a UNet keeps, as a share of all that it keeps: a few blocks at full resolution have most of it
_LARGEST_BLOCK = 0.25


@dataclass(frozen=True)
class Fit:
    """How many samples of the native size are run at a time, and whether their activations are recomputed."""

    samples: int
    recompute: bool

    def rows(self, windows: int) -> int:
        """How many rows are run at a time that are as wide as so many native pictures."""
        return max(1, self.samples // windows)

    def smaller(self) -> Fit:
        """What needs less.

        Raises:
            TooLittleMemory: nothing does
        """
        if self.samples > 1:
            return replace(self, samples=math.ceil(self.samples / 2))
        if self.recompute:
            raise TooLittleMemory
        return replace(self, recompute=True)


class TooLittleMemory(LoraclrError):
    """A card cannot hold even one sample."""

    def __init__(self) -> None:
        super().__init__(
            "The graphics memory is too small to refine this merge even one sample at a time: use effort layers, merge fewer "
            "LoRAs at a time, or record smaller pictures (width and height)."
        )


def ended_early(made: int, steps: int) -> str:
    """The warning of a refinement that the card had no room to go on with."""
    return (
        f"The graphics memory is too small to refine this merge even one sample at a time: it ended after {made} of {steps} "
        "steps, and concepts are kept less well. Merge fewer LoRAs at a time, or record smaller pictures (width and height)."
    )


def went_smaller(fit: Fit) -> str:
    """The warning of a refinement that ran out of memory on the way, and went on with less at a time.

    Args:
        fit: what it went on with
    """
    recomputed = ", and their activations recomputed" if fit.recompute else ""
    return (
        f"The graphics memory ran out while the merge was refined: from then on samples were run {fit.samples} at a time"
        f"{recomputed}, which takes longer and changes nothing else."
    )


def find_fit(predictor: Predictor, trained: TrainedFactors, run: Callable[[int], object], most: int) -> Fit:
    """How many samples fit at a time, and whether activations must be recomputed for even one to fit.

    Measured: one sample, and two where one fits, are run with their saved tensors counted. Nothing is counted inside blocks whose
    activations are recomputed, one block at a time: what one keeps is estimated.

    Args:
        run: evaluates the loss of so many samples with the factors in place
        most: samples that are wanted at a time

    Raises:
        TooLittleMemory: the graphics card runs out of memory with one
    """
    budget = predictor.activation_budget(_STATES * trained.values.nbytes)

    # what is there whether anything runs or not: the model's own weights, and the factors
    there = {_address(layer.weight) for layer in predictor.host.layers().values()}
    there |= {_address(tensor) for factors in trained.applied.values() for tensor in (factors.up, factors.down)}

    def saved(samples: int) -> int:
        with predictor.host.apply(trained.applied):
            return saved_bytes(lambda: run(samples), there)

    def even(fitting: int, recompute: bool) -> Fit:
        """In chunks of nearly the same size."""
        chunks = math.ceil(most / min(most, max(1, fitting)))
        return Fit(math.ceil(most / chunks), recompute)

    kept = saved(1)
    if kept <= budget:
        # the changed weights are kept once per evaluation, whatever the number of samples
        return even(1 + (budget - kept) // max(1, saved(2) - kept), recompute=False)
    with predictor.host.recomputing():
        one = saved(1)
        if one == TOO_MANY:
            raise TooLittleMemory
        block = int(_LARGEST_BLOCK * kept)
        if one + block > budget:
            return Fit(1, recompute=True)
        return even(1 + (budget - one - block) // max(1, saved(2) - one + block), recompute=True)


def saved_bytes(run: Callable[[], object], there: Collection[int] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of a run, each storage counted once; `TOO_MANY` where memory ran out.

    Args:
        there: addresses of storages that do not count
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if (address := _address(tensor)) not in there:
            storages[address] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # a layer's output itself would hold its graph, and that the output: for good

    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return TOO_MANY
    return max(1, sum(storages.values()))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
