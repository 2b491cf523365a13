"""Record what enters each layer: a bounded, uniform sample of rows, whatever the number of steps and pixels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Layer


class Reservoir:
    """A uniform sample of at most `capacity` rows from a stream of unknown length, in half precision in RAM.

    Every row draws a random number, and those with the largest are kept: bottom-k sampling, the vectorised form of
    Vitter's algorithm R.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self._generator = torch.Generator().manual_seed(seed)
        self._tags = torch.full((capacity,), -1.0)  # below every number drawn: a place that is free
        self._rows: Tensor | None = None

    def update(self, count: int, gather: Callable[[Tensor], Tensor]) -> None:
        """Offer `count` rows; `gather(indices [m])` is asked only for those that are kept, and gives `[m, d_in]`."""
        drawn = torch.rand(count, generator=self._generator)
        # of tens of thousands of rows few are better than the worst that is kept, and only those need sorting
        better = torch.nonzero(drawn > self._tags.min()).flatten()
        if len(better) == 0:
            return
        tags = torch.cat([self._tags, drawn[better]])
        best = tags.argsort(descending=True, stable=True)[: self.capacity]
        chosen = best[best >= self.capacity]
        rows = in_half(gather(better[chosen - self.capacity]).detach())
        if self._rows is None:
            self._rows = torch.empty(self.capacity, rows.shape[1], dtype=torch.float16)
        # In place: a new tensor for every call would leave the heap in pieces that add up to more than the budget.
        places = torch.ones(self.capacity, dtype=torch.bool)
        places[best[best < self.capacity]] = False
        self._rows[places] = rows
        self._tags[places] = tags[chosen]

    def result(self) -> Tensor:
        """The sample, `[n, d_in]`, fp16, `n <= capacity`, in an order that only the numbers drawn decide."""
        if self._rows is None:
            return torch.empty(0, 0, dtype=torch.float16)
        order = self._tags.argsort(descending=True, stable=True)
        return self._rows[order[: int((self._tags >= 0).sum())]]


def in_half(rows: Tensor) -> Tensor:
    """Rows `[m, d_in]` as fp16 on the CPU; a row that is too large for it keeps its direction and counts for less.

    A model in fp32 or bf16 may well have activations above 65504, and one of them is no reason to end a merge. Infinity and NaN
    stay what they are: the model overflowed.
    """
    most = torch.finfo(torch.float16).max
    largest = rows.abs().amax(dim=1, keepdim=True)
    if (largest > most).any():
        rows = rows * (most / largest).clamp(max=1)
    return rows.to("cpu", torch.float16)


def input_rows(module: nn.Module, x: Tensor) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The rows that a layer multiplies with its flattened weight: how many, and a function that gathers some of them.

    Args:
        x: the layer's input, `[…, d_in]`, or `[b, c_in, h, w]` for a convolution, whose rows are
            patches `[c_in * k * k]`, one per output position
    """
    if not isinstance(module, nn.Conv2d) or x.dim() == 2:
        # rows as they are; a vector's, where a convolution has a bias
        return math.prod(x.shape[:-1]), lambda index: _rows(x, index.to(x.device))
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    # as the convolution itself pads, which may be "same", or circular where a host makes tiles
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode).permute(0, 2, 3, 1)
    batch, height, width, _ = padded.shape
    rows = (height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1

    def gather(index: Tensor) -> Tensor:
        index = index.to(x.device)
        sample, position = index // (rows * columns), index % (rows * columns)
        top, left = position // columns * stride[0], position % columns * stride[1]
        down = torch.arange(kernel[0], device=x.device) * dilation[0]
        right = torch.arange(kernel[1], device=x.device) * dilation[1]
        y = (top[:, None] + down)[:, :, None]
        z = (left[:, None] + right)[:, None, :]
        patches = padded[sample[:, None, None], y, z]  # [m, k, k, c_in]
        return patches.permute(0, 3, 1, 2).reshape(len(index), -1)

    return batch * rows * columns, gather


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """`x.reshape(-1, d)[index]`, `[m, d]`, which would copy all of an `x [..., d]` that is not contiguous."""
    places: list[Tensor] = []
    for size in reversed(x.shape[:-1]):
        places.insert(0, index % size)
        index = index // size
    return x[tuple(places)] if places else x[None]


class Recorder:
    """What enters layers while the model runs, each sample once, however often it has to be tried."""

    def __init__(self, layers: Mapping[str, Layer], capacity: Mapping[str, int], seed: int) -> None:
        self._layers = layers
        self._reservoirs = {key: Reservoir(rows, seed ^ zlib.crc32(key.encode())) for key, rows in capacity.items()}
        self._recorded: set[str] = set()
        self._had: dict[str, set[int]] = {}
        self._samples = range(0)

    @contextmanager
    def attempt(self, samples: range) -> Iterator[None]:
        """Inside, the model runs once, on samples of these numbers.

        Where it fails in the middle (memory ran out), the layers before have had them, and leave them out when they are tried
        again, all or some at a time.
        """
        self._samples, self._recorded = samples, set()
        try:
            yield
        except BaseException:
            for key in self._recorded:
                self._had.setdefault(key, set()).update(samples)
            raise

    def hook(self, key: str) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        """What is to be called before a layer's module runs."""
        reservoir, layer = self._reservoirs[key], self._layers[key]

        def record(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if self._had.get(key, set()).isdisjoint(self._samples):
                reservoir.update(*input_rows(layer.owner, layer.observed(module, arguments, named).detach()))
                self._recorded.add(key)

        return record

    def result(self) -> dict[str, Tensor]:
        """Layer key -> `[n, d_in]`, fp16 on the CPU."""
        return {key: reservoir.result() for key, reservoir in self._reservoirs.items()}


@contextmanager
def record_inputs(layers: Mapping[str, Layer], capacity: Mapping[str, int], *, seed: int) -> Iterator[Recorder]:
    """Record what enters layers while the context is open; the hooks are gone when it closes.

    Args:
        layers: layer key -> layer of the model
        capacity: layer key -> rows to keep at most; the layers to record
        seed: of the choice of rows; a layer's rows do not depend on which other layers are recorded
    """
    recorder, handles = Recorder(layers, capacity, seed), []
    try:
        for key in capacity:
            handles.append(layers[key].module.register_forward_pre_hook(recorder.hook(key), with_kwargs=True))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def shared_inputs(layers: Mapping[str, Layer], keys: list[str], run: Callable[[], None]) -> dict[str, str]:
    """Which layers receive the very same tensor (q, k and v; the k and v of every cross-attention).

    Args:
        layers: layer key -> layer of the model
        keys: the layers to look at
        run: runs the model once, at any size

    Returns:
        layer key -> key of the layer whose recording serves it (its own, where it shares with none before it)
    """
    seen: list[tuple[str, Tensor]] = []
    handles = []
    try:
        for key in keys:

            def remember(
                module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], key: str = key
            ) -> None:
                # the tensor is held until the end, since the address of one that is gone is used again
                seen.append((key, layers[key].observed(module, arguments, named)))

            handles.append(layers[key].module.register_forward_pre_hook(remember, with_kwargs=True))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    served_by: dict[str, str] = {}
    for key, tensor in seen:
        module = layers[key].owner
        kernel = module.kernel_size if isinstance(module, nn.Conv2d) else ()
        served_by.setdefault(key, first.setdefault((id(tensor), tuple(kernel)), key))
    return served_by
