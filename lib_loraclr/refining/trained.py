"""The factors that are trained, side by side in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Factors, Host, balanced

#: precisions of weights whose layers are given their factors in the same one
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Stack:
    """Factors of layers of one shape, and of one precision of weights.

    Attributes:
        keys: of the `k` layers
        up: `[k, d_out, r]`
        down: `[k, r, d_in]`
    """

    keys: tuple[str, ...]
    up: Tensor
    down: Tensor

    def items(self) -> Iterator[tuple[str, Factors]]:
        """Layer keys, and views of each one's factors."""
        for key, up, down in zip(self.keys, self.up, self.down, strict=True):
            yield key, Factors(up, down)


#: keys, and the shapes of one layer's two factors
_Shape = tuple[Sequence[str], torch.Size, torch.Size]


def _stacks(flat: Tensor, shapes: Sequence[_Shape]) -> list[Stack]:
    """Views of a tensor `[n]` in which the stacks stand one after the other."""
    parts = iter(flat.split([len(keys) * shape.numel() for keys, *both in shapes for shape in both]))
    return [
        Stack(tuple(keys), next(parts).view(len(keys), *up), next(parts).view(len(keys), *down))
        for keys, up, down in shapes
    ]


def _leaves(values: Iterable[Stack], gradients: Iterable[Stack]) -> dict[str, Factors]:
    """Factors that a backward pass gives these gradients to, adding to what is there."""
    leaves = {}
    for stack, own in zip(values, gradients, strict=True):
        for (key, value), (_, gradient) in zip(stack.items(), own.items(), strict=True):
            leaves[key] = Factors(value.up.detach().requires_grad_(), value.down.detach().requires_grad_())
            leaves[key].up.grad, leaves[key].down.grad = gradient.up, gradient.down
    return leaves


@dataclass(frozen=True)
class _Copy:
    """Factors in half precision and the gradients of one backward pass, `[m]` each, and where those stand that they are of."""

    place: slice
    values: Tensor
    gradients: Tensor


class TrainedFactors:
    """Factors in fp32 to learn with, and in the precision of the model's weights to run it with.

    All are one tensor, in which those of layers of one shape are a stack: what is done to each of hundreds of factors between two
    passes, a device is asked for a few dozen times. Asked for each, a graphics card works for less time than the asking takes.

    On a graphics card a layer whose weight is in half precision is given copies in it, made once a step. It multiplies in half
    precision either way; cast at every call, a factor and its gradient would be cast again and again.

    Attributes:
        factors: layer key -> what is learnt, fp32
        applied: layer key -> the same for `Host.apply`, with gradients
        stacks: of what is learnt, each tensor with its gradient as `.grad`
        values, gradients: of all factors, one after the other, `[n]` fp32
    """

    def __init__(self, start: Mapping[str, Factors], host: Host, *, copies: bool | None = None) -> None:
        """
        Args:
            start: layer key -> factors, anywhere and in any precision; they are balanced first, and lose the rank that they do
                not have
            copies: whether weights in half precision are given factors in it; None: not on a CPU, which multiplies halves slowly
                or not at all
        """
        even = {key: balanced_in_fp32(factors) for key, factors in start.items()}
        by_precision = _shapes(even, host, copies=needs_copies(host) if copies is None else copies)
        shapes = [shape for own in by_precision.values() for shape in own]
        numbers = sum(f.up.numel() + f.down.numel() for f in even.values())
        self.values = torch.empty(numbers, dtype=torch.float32, device=host.device)
        self.gradients = torch.zeros_like(self.values)
        self.stacks = _stacks(self.values, shapes)
        for stack, own in zip(self.stacks, _stacks(self.gradients, shapes), strict=True):
            stack.up.grad, stack.down.grad = own.up, own.down
        self.factors = {key: factors for stack in self.stacks for key, factors in stack.items()}
        for key, factors in even.items():
            self.factors[key].up.copy_(factors.up)
            self.factors[key].down.copy_(factors.down)
        self.applied: dict[str, Factors] = {}
        self._copies: list[_Copy] = []
        begin = 0
        for precision, own in by_precision.items():
            place = slice(begin, begin + sum(len(keys) * (up.numel() + down.numel()) for keys, up, down in own))
            values, gradients, begin = self.values[place], self.gradients[place], place.stop
            if precision in _HALF:
                values, gradients = values.to(precision), torch.zeros_like(values, dtype=precision)
                self._copies.append(_Copy(place, values, gradients))
            self.applied |= _leaves(_stacks(values, own), _stacks(gradients, own))

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the model what was learnt since this was called last; until then it runs with what it had."""
        for copy in self._copies:
            copy.values.copy_(self.values[copy.place])

    @torch.no_grad()
    def gather(self) -> None:
        """Add what a backward pass has left in half precision to the gradients, which are summed in fp32."""
        for copy in self._copies:
            self.gradients[copy.place].add_(copy.gradients)
            copy.gradients.zero_()

    def clear(self) -> None:
        """Forget all gradients, those of a backward pass that did not come to its end too."""
        self.gradients.zero_()
        for copy in self._copies:
            copy.gradients.zero_()

    def snapshot(self) -> dict[str, Factors]:
        """Copies of what is learnt, on the CPU."""
        stacks = [Stack(stack.keys, stack.up.cpu(), stack.down.cpu()) for stack in self.stacks]
        return {key: Factors(f.up.clone(), f.down.clone()) for stack in stacks for key, f in stack.items()}


def balanced_in_fp32(factors: Factors) -> Factors:
    """The same delta in fp32, its factors of equal size."""
    return balanced(factors.to(torch.float32))


def needs_copies(host: Host) -> bool:
    """Whether a model is run with copies of the factors, in the precision of its weights."""
    return host.device.type != "cpu" and any(layer.weight.dtype in _HALF for layer in host.layers().values())


def _shapes(factors: Mapping[str, Factors], host: Host, *, copies: bool) -> dict[torch.dtype, list[_Shape]]:
    """The stacks that there will be, by the precision of the factors that the model is run with."""
    keys: dict[tuple[torch.dtype, torch.Size, torch.Size], list[str]] = {}
    layers = host.layers()
    for key, own in factors.items():
        dtype = layers[key].weight.dtype
        precision = dtype if copies and dtype in _HALF else torch.float32
        keys.setdefault((precision, own.up.shape, own.down.shape), []).append(key)
    found: dict[torch.dtype, list[_Shape]] = {}
    for (precision, up, down), own in keys.items():
        found.setdefault(precision, []).append((own, up, down))
    return found
