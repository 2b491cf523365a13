"""The pull of a refinement back towards where it began."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..model import Factors


class Anchor:
    """`λ_delta Σ ||ΔW - ΔW_start||² / Σ ||ΔW_start||²`, from `[r, r]` products of the factors; no delta is made dense."""

    def __init__(self, parameters: Mapping[str, Factors], strength: float) -> None:
        self._start = {key: Factors(f.up.detach().clone(), f.down.detach().clone()) for key, f in parameters.items()}
        self._energies = {key: ((f.up.mT @ f.up) * (f.down @ f.down.mT)).sum() for key, f in self._start.items()}
        size = float(torch.stack(list(self._energies.values())).sum())
        self._weight = strength / max(size, torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def pull(self, parameters: Mapping[str, Factors]) -> Tensor:
        """Adds the penalty's gradient to the factors', in closed form, and returns its value, `[]`."""
        total = torch.zeros((), device=next(iter(parameters.values())).up.device)
        if not self._weight:
            return total
        for key, now in parameters.items():
            start = self._start[key]
            # of D = up down - up' down': D down^T and up^T D, without D
            by_up = now.up @ (now.down @ now.down.mT) - start.up @ (start.down @ now.down.mT)
            by_down = (now.up.mT @ now.up) @ now.down - (now.up.mT @ start.up) @ start.down
            _add_gradient(now.up, 2 * self._weight * by_up)
            _add_gradient(now.down, 2 * self._weight * by_down)
            # ||D||² = <D down^T, up> - <D, up' down'>
            cross = (start.up.mT @ now.up) @ (now.down @ start.down.mT)
            total += (by_up * now.up).sum() - cross.diagonal().sum() + self._energies[key]
        return self._weight * total.clamp_min(0)


def _add_gradient(tensor: Tensor, gradient: Tensor) -> None:
    tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)
