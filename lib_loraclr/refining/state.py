"""A refinement's state, kept every few minutes, so that one that was ended goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..files import Kept, WorkFolder
from ..model import Factors
from .trained import Stack, TrainedFactors

#: seconds between two states that are kept, and at least so many times what keeping one takes
EVERY, SPARED = 120.0, 20.0


class StateKeeper:
    """The state of one refinement in a work folder."""

    def __init__(self, folder: WorkFolder, key: str) -> None:
        """
        Args:
            key: of all that the refinement depends on (`files.content_key`)
        """
        self._folder, self._key = folder, key
        self._last, self._took = time.monotonic(), 0.0

    def find(self) -> Kept | None:
        """The last state that was kept of this refinement; copied, as Windows lets nobody replace a file that is mapped."""
        found = self._folder.find(self._key)
        return found and replace(found, tensors={name: tensor.clone() for name, tensor in found.tensors.items()})

    def keep(
        self, state: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, object]]], *, now: bool = False
    ) -> None:
        """Keep the state, if it is time to.

        Args:
            state: makes it: tensors, and what JSON can hold
            now: whether it is time whatever the clock says
        """
        begun = time.monotonic()
        if now or begun - self._last >= max(EVERY, SPARED * self._took):
            self._folder.keep(self._key, *state())
            self._last = time.monotonic()
            self._took = self._last - begun


def factor_tensors(prefix: str, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Factors by names."""
    return {f"{prefix}.{key}.{side}": getattr(f, side) for key, f in factors.items() for side in ("up", "down")}


def factors_of(prefix: str, tensors: Mapping[str, Tensor], keys: Collection[str]) -> dict[str, Factors]:
    """Factors from their names.

    Args:
        keys: of the layers
    """
    return {key: Factors(tensors[f"{prefix}.{key}.up"], tensors[f"{prefix}.{key}.down"]) for key in keys}


#: what an optimiser remembers of factors: its name for it
_REMEMBERED = "optimizer "


def training_tensors(trained: TrainedFactors, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The factors, and what an optimiser remembers of each."""
    tensors = factor_tensors("now", trained.factors)
    for stack in trained.stacks:
        ups, downs = optimizer.state.get(stack.up, {}), optimizer.state.get(stack.down, {})
        for what in ups:
            remembered = Stack(stack.keys, ups[what], downs[what])
            tensors |= factor_tensors(f"{_REMEMBERED}{what}", dict(remembered.items()))
    return tensors


@torch.no_grad()
def restore_training(trained: TrainedFactors, optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """As they were when `training_tensors` looked."""
    for key, factors in factors_of("now", kept, trained.factors).items():
        trained.factors[key].up.copy_(factors.up)
        trained.factors[key].down.copy_(factors.down)
    trained.refresh()
    remembered = {name.removeprefix(_REMEMBERED).partition(".")[0] for name in kept if name.startswith(_REMEMBERED)}
    for what in remembered:
        for stack in trained.stacks:
            own = list(factors_of(f"{_REMEMBERED}{what}", kept, stack.keys).values())
            optimizer.state[stack.up][what] = torch.stack([f.up for f in own]).to(stack.up)
            optimizer.state[stack.down][what] = torch.stack([f.down for f in own]).to(stack.down)
