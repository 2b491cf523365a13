"""A step of the refinement at a real checkpoint's shapes: as it was first built, and in both ways that there are now.

A part of `speed` and of `card`.

All ways in one run on the same samples; seconds are a forward and backward pass with all factors trained and what is done to the
factors after it, memory is what it takes beyond weights and factors, operations are what torch is asked for, without views. On a
CPU each way has a process of its own, so that none uses again what another let go of.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.model import Factors, substitution
from lib_loraclr.refining.anchor import Anchor
from lib_loraclr.refining.loss_scale import LossScale
from lib_loraclr.refining.optimizers import Muon, orthogonalized
from lib_loraclr.refining.trained import TrainedFactors, balanced_in_fp32

from .clock import resident_mb
from .random_models import adapted, random_host
from .shapes import SD15

#: weight of the pull back to the start, and length of a step
_DELTA, _RATE = 0.001, 0.0
_MOMENTUM, _SCALE = 0.9, 256.0


@dataclass(frozen=True)
class Way:
    """How a step is made.

    Attributes:
        branches: beside the layers, where they are cheaper, or changed weights everywhere
        together: all factors in one tensor, or one by one
    """

    branches: bool
    together: bool = True


FIRST = "as first built"
WAYS = {FIRST: Way(False, together=False), "changed weights": Way(False), "branches where cheaper": Way(True)}


def compare_steps(device: str, small: bool) -> dict:
    """All ways, for the ranks that two and four LoRAs of rank 32 have together; ratios are to the first."""
    side = 16 if small else 32 if device == "cpu" else 64
    samples = 2 if device == "cpu" else 6
    found: dict = {"right": True, "side": side, "samples": samples}
    for rank in (8,) if small else (64, 128):
        ways = {}
        for name, way in WAYS.items():
            asked = (device, small, rank, side, samples, way)
            if device == "cuda":
                ways[name] = _measure(*asked)
            else:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    ways[name] = pool.apply(_measure, asked)
        first = ways[FIRST]
        found["right"] &= all(abs(own["loss"] - first["loss"]) <= 1e-2 * abs(first["loss"]) for own in ways.values())
        ratios = {
            name: {what: round(own[what] / first[what], 2) for what in ("seconds", "mb", "operations")}
            for name, own in ways.items()
            if name != FIRST
        }
        found[f"rank {rank}"] = {**ways, "ratios": ratios}
    return found


def _measure(device: str, small: bool, rank: int, side: int, samples: int, way: Way) -> dict:
    dtype = torch.float16 if device == "cuda" else torch.float32
    host = random_host(SD15.small() if small else SD15, device=device, dtype=dtype)
    factors = (_Together if way.together else _OneByOne)(_factors(host, rank), host)
    x = torch.randn(samples, host.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(100, 900, samples).long()
    x, t = x.to(host.device), t.to(host.device)

    def step() -> float:
        with host.apply(factors.applied):
            prediction = host.denoise(x, t, host.encode(["a photo of something"] * samples))
            loss = prediction.square().mean()
            (loss * _SCALE).backward()
        factors.learn()
        return float(loss.detach())

    # a CPU has other work too
    clock = time.perf_counter if device == "cuda" else time.process_time
    with _ways(way.branches), _peak(device) as peak:
        loss, taken = step(), []  # the first loads what it needs
        for _ in range(3 if device == "cuda" else 2):
            begun = clock()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - begun)
        with Counting() as counting:
            step()
    taken = round(statistics.median(taken), 3)
    return {"seconds": taken, "mb": round(peak[0]), "operations": counting.asked, "loss": loss}


class Counting(TorchDispatchMode):
    """How often torch is asked for something that is to be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        # what only looks at a tensor in another way returns an alias of it
        if not any(given.alias_info and not given.alias_info.is_write for given in operation._schema.returns):
            self.asked += 1
        return operation(*args, **(kwargs or {}))


class _Together:
    """The product's: all factors in one tensor."""

    def __init__(self, start: Mapping[str, Factors], host: DiffusersHost) -> None:
        self._trained = TrainedFactors(start, host)
        self.applied = self._trained.applied
        self._anchor, self._scale = Anchor(self._trained, _DELTA), LossScale(enabled=True)
        self._scale.value = _SCALE
        self._muon = Muon([tensor for s in self._trained.stacks for tensor in (s.up, s.down)], lr=_RATE)

    def learn(self) -> None:
        """What comes after the backward pass."""
        self._trained.gather()
        self._scale.settle(self._trained.gradients)
        self._anchor.pull()
        self._muon.step()
        self._trained.refresh()
        self._trained.clear()


class _OneByOne:
    """The same for each factor by itself, in fp32, and cast by each layer where it is called."""

    def __init__(self, start: Mapping[str, Factors], host: DiffusersHost) -> None:
        even = {key: balanced_in_fp32(factors).to(host.device) for key, factors in start.items()}
        self.applied = {key: Factors(f.up.requires_grad_(), f.down.requires_grad_()) for key, f in even.items()}
        self._start = {key: Factors(f.up.detach().clone(), f.down.detach().clone()) for key, f in even.items()}
        self._tensors = [tensor for f in self.applied.values() for tensor in (f.up, f.down)]
        self._momentum = [torch.zeros_like(tensor) for tensor in self._tensors]

    @torch.no_grad()
    def learn(self) -> None:
        """What comes after the backward pass."""
        largest = torch.stack([tensor.grad.abs().amax() for tensor in self._tensors])
        if bool(largest.isfinite().all()):
            for tensor in self._tensors:
                tensor.grad.div_(_SCALE)
        total = torch.zeros((), device=self._tensors[0].device)
        for key, now in self.applied.items():
            total += self._pull(now, self._start[key])
        self._step()

    def _pull(self, now: Factors, start: Factors) -> Tensor:
        by_up = now.up @ (now.down @ now.down.mT) - start.up @ (start.down @ now.down.mT)
        by_down = (now.up.mT @ now.up) @ now.down - (now.up.mT @ start.up) @ start.down
        now.up.grad.add_(by_up, alpha=_DELTA)
        now.down.grad.add_(by_down, alpha=_DELTA)
        cross = (start.up.mT @ now.up) @ (now.down @ start.down.mT)
        return (by_up * now.up).sum() - cross.diagonal().sum()

    def _step(self) -> None:
        """Muon's, matrices of one shape together."""
        by_shape: dict[torch.Size, list[int]] = {}
        for k, tensor in enumerate(self._tensors):
            by_shape.setdefault(tensor.shape, []).append(k)
        for own in by_shape.values():
            directions = []
            for k in own:
                self._momentum[k].mul_(_MOMENTUM).add_(self._tensors[k].grad)
                directions.append(self._tensors[k].grad.add(self._momentum[k], alpha=_MOMENTUM))
            for k, direction in zip(own, orthogonalized(torch.stack(directions)), strict=True):
                self._tensors[k].add_(direction, alpha=-_RATE)
                self._tensors[k].grad = None


def _factors(host: DiffusersHost, rank: int) -> dict[str, Factors]:
    """Small random factors."""
    generator, made = torch.Generator().manual_seed(1), {}
    for key, layer in adapted(host).items():
        d_out, d_in = layer.shape
        up = torch.randn(d_out, rank, generator=generator) * 1e-3
        down = torch.randn(rank, d_in, generator=generator) * 1e-1
        made[key] = Factors(up, down)
    return made


@contextmanager
def _ways(branches: bool) -> Iterator[None]:
    """With branches where they are cheaper, or without any."""
    real = substitution.has_branches
    if not branches:
        substitution.has_branches = lambda module: False
    try:
        yield
    finally:
        substitution.has_branches = real


@contextmanager
def _peak(device: str) -> Iterator[list[float]]:
    """The most MB beyond what there was at the start."""
    found = [0.0]
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        found[0] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    before, done = resident_mb(), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], resident_mb() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
