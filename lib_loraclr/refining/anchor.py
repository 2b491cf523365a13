"""The pull of a refinement back towards where it began."""

from __future__ import annotations

import torch
from torch import Tensor

from .trained import Stack, TrainedFactors


class Anchor:
    """`λ_delta Σ ||ΔW - ΔW_start||² / Σ ||ΔW_start||²`, from `[r, r]` products of the factors; no delta is made dense."""

    def __init__(self, trained: TrainedFactors, strength: float) -> None:
        self._trained = trained
        self._start = [Stack(stack.keys, stack.up.clone(), stack.down.clone()) for stack in trained.stacks]
        self._energies = [((s.up.mT @ s.up) * (s.down @ s.down.mT)).sum() for s in self._start]
        size = float(torch.stack(self._energies).sum())
        self._weight = strength / max(size, torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def pull(self) -> Tensor:
        """Adds the penalty's gradient to the factors', in closed form, and returns its value, `[]`."""
        total = self._trained.values.new_zeros(())
        if not self._weight:
            return total
        for now, start, energy in zip(self._trained.stacks, self._start, self._energies, strict=True):
            # of D = up down - up' down': D down^T and up^T D, without D
            by_up = now.up @ (now.down @ now.down.mT) - start.up @ (start.down @ now.down.mT)
            by_down = (now.up.mT @ now.up) @ now.down - (now.up.mT @ start.up) @ start.down
            now.up.grad.add_(by_up, alpha=2 * self._weight)
            now.down.grad.add_(by_down, alpha=2 * self._weight)
            # ||D||² = <D down^T, up> - <D, up' down'>
            cross = (start.up.mT @ now.up) @ (now.down @ start.down.mT)
            total += (by_up * now.up).sum() - cross.diagonal(dim1=-2, dim2=-1).sum() + energy
        return self._weight * total.clamp_min(0)
