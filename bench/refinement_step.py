"""A step of the refinement at a real checkpoint's shapes: weights that are changed against branches beside them.

A part of `speed` and of `card`.

Both ways in one run on the same samples; seconds are a forward and backward pass with all factors trained, memory is what it
takes beyond weights and factors. On a CPU each way has a process of its own, so that none uses again what the other let go of.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.model import Factors, substitution
from lib_loraclr.refining.trained import TrainedFactors

from .clock import resident_mb
from .random_models import adapted, random_host
from .shapes import SD15

WAYS = {"changed weights": False, "branches where cheaper": True}


def compare_steps(device: str, small: bool) -> dict:
    """Both ways, for the ranks that two and four LoRAs of rank 32 have together."""
    side = 16 if small else 32 if device == "cpu" else 64
    samples = 2 if device == "cpu" else 6
    found: dict = {"right": True, "side": side, "samples": samples}
    for rank in (8,) if small else (64, 128):
        ways = {}
        for way, branches in WAYS.items():
            asked = (device, small, rank, side, samples, branches)
            if device == "cuda":
                ways[way] = _measure(*asked)
            else:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    ways[way] = pool.apply(_measure, asked)
        before, after = (ways[way] for way in WAYS)
        close = abs(before["loss"] - after["loss"]) <= 1e-2 * abs(before["loss"])
        found["right"] = found["right"] and close
        ratios = {what: round(after[what] / before[what], 2) for what in ("seconds", "mb")}
        found[f"rank {rank}"] = {**ways, "ratios": ratios}
    return found


def _measure(device: str, small: bool, rank: int, side: int, samples: int, branches: bool) -> dict:
    dtype = torch.float16 if device == "cuda" else torch.float32
    host = random_host(SD15.small() if small else SD15, device=device, dtype=dtype)
    trained = TrainedFactors(_factors(host, rank), host)
    x = torch.randn(samples, host.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(100, 900, samples).long()
    x, t = x.to(host.device), t.to(host.device)

    def step() -> float:
        with host.apply(trained.applied):
            prediction = host.denoise(x, t, host.encode(["a photo of something"] * samples))
            loss = prediction.square().mean()
            (loss * 256).backward()
        trained.gather()
        trained.clear()
        return float(loss.detach())

    with _ways(branches), _peak(device) as peak:
        loss, taken = step(), []  # the first loads what it needs
        for _ in range(3 if device == "cuda" else 2):
            begun = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begun)
    return {"seconds": round(statistics.median(taken), 3), "mb": round(peak[0]), "loss": loss}


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
