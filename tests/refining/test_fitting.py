"""Counting what a backward pass would keep leaves nothing behind."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn

from lib_loraclr.refining.fitting import saved_bytes


def test_what_was_counted_is_let_go_of() -> None:
    """An output that its own graph saves would hold the graph that holds it, beyond the reach of Python's collector: a merge
    left the activations of three samples behind, for good."""
    layer, seen = nn.Linear(8, 8), []

    def run() -> None:
        output = layer(torch.randn(4, 8)).exp()  # whose gradient is made of the output
        seen.append(weakref.ref(output))

    assert saved_bytes(run) >= 4 * 8 * 4
    gc.collect()
    assert seen.pop()() is None

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        held.append(layer(torch.randn(4, 8)).exp())
    graph = weakref.ref(held.pop())
    gc.collect()
    assert graph() is not None, "control: so it was"
    graph().sum().backward()  # which ends it
