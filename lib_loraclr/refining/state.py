"""A refinement's state, kept every few minutes, so that one that was ended goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..files import Kept, WorkFolder
from ..model import Factors

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


#: what an optimiser remembers of a parameter: the parameter's name, and the optimiser's
_REMEMBERED = "optimizer {} {}"


def training_tensors(parameters: Mapping[str, Factors], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters, and what an optimiser remembers of each."""
    tensors = factor_tensors("now", parameters)
    remembered = {
        _REMEMBERED.format(name, what): tensor
        for name, parameter in tensors.items()
        for what, tensor in optimizer.state.get(parameter, {}).items()
    }
    return {**tensors, **remembered}


@torch.no_grad()
def restore_training(
    parameters: Mapping[str, Factors], optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]
) -> None:
    """As they were when `training_tensors` looked."""
    own = factor_tensors("now", parameters)
    for name, parameter in own.items():
        parameter.copy_(kept[name])
    for name, tensor in kept.items():
        if name.startswith(_REMEMBERED.partition("{")[0]):
            _, parameter, what = name.split(" ")
            optimizer.state[own[parameter]][what] = tensor.to(own[parameter].device, copy=True)
