"""Muon, for the factors of low-rank matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

#: of the quintic iteration that takes every singular value near to 1 (Jordan et al. 2024)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
#: the length of a step that AdamW of the same learning rate takes (Liu et al., arXiv 2502.16982, section 2.2)
_MATCHED = 0.2


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices `[k, m, n]` with their singular values near to 1, by five Newton-Schulz steps and no SVD.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        # a x + (b gram + c gram²) x, in as few calls as it takes
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov) whose direction is made orthogonal, for matrices only.

    A factor's gradient is dominated by a few directions, those that the strongest concepts need; made orthogonal, a step moves
    in all of them alike. torch has it since 2.9, the hosts have older ones; and it takes matrices one by one.
    """

    def __init__(self, stacks: Iterable[Tensor], *, lr: float, momentum: float = 0.9) -> None:
        """
        Args:
            stacks: of matrices, `[k, m, n]` each
            lr: length of a step, in the unit of AdamW's
            momentum: of the gradients' running sum
        """
        super().__init__(stacks, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for stack in group["params"]:
                if stack.grad is not None:
                    length = group["lr"] * _MATCHED * max(stack.shape[1:]) ** 0.5
                    stack.add_(orthogonalized(self._direction(stack, group["momentum"])), alpha=-length)

    def _direction(self, stack: Tensor, momentum: float) -> Tensor:
        state = self.state[stack]
        if not state:
            state["momentum"] = torch.zeros_like(stack)
        state["momentum"].mul_(momentum).add_(stack.grad)
        return stack.grad.add(state["momentum"], alpha=momentum)
