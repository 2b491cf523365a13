"""What every WebUI's host does while it works on the loaded checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import modules


@contextmanager
def job(name: str) -> Iterator[None]:
    """The WebUI's queue, and its job, as its own API does it (`modules/api/api.py`)."""
    shared = modules.module("shared")
    with modules.module("call_queue").queue_lock:
        shared.state.begin(job=name)
        try:
            yield
        finally:
            shared.state.end()


@contextmanager
def whole_precision() -> Iterator[None]:
    """Products of fp32 matrices in fp32; the WebUI lets NVIDIA's cards round what goes into them to ten bits (TF32)."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    settings.allow_tf32 = False
    try:
        yield
    finally:
        settings.allow_tf32 = before


@contextmanager
def recomputed(block: nn.Module, *, copied: bool = False) -> Iterator[None]:
    """Non-re-entrant checkpointing of one block.

    Args:
        copied: the block changes its input in place, so that each run of it gets a copy
    """
    # here, as it brings torch's testing tools with it, and the WebUI's start need not wait for them
    from torch.utils.checkpoint import checkpoint

    forward = block.forward
    before = block.__dict__.get("forward")

    def run(x: Tensor, *arguments, **named):
        return forward(x.clone() if copied else x, *arguments, **named)

    def recomputing(*arguments, **named):
        # nothing in these blocks is random while the model is in evaluation mode
        return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    block.__dict__["forward"] = recomputing
    try:
        yield
    finally:
        block.__dict__.pop("forward")
        if before is not None:
            block.__dict__["forward"] = before
