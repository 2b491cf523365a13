"""What enters each layer of the model while some concepts are active: which layers are recorded, and the recording itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files import is_text_encoder
from ..model import Deltas, Host
from ..progress import Progress
from .input_rows import record_inputs, shared_inputs
from .sampling import BATCH
from .teachers import Teacher

#: what is opened for each time that the model is tried, with the samples' numbers (`input_rows.Recorder`)
Attempt = Callable[[range], AbstractContextManager[None]]


@dataclass(frozen=True)
class Run:
    """A run of the model whose layers' inputs are recorded.

    Attributes:
        teacher: on whose prompts
        deltas: what the model is changed by
        samples: how many there are
        evaluate: runs the samples of a slice, in attempts that it opens
    """

    teacher: Teacher
    deltas: Deltas
    samples: int
    evaluate: Callable[[slice, Attempt], object]


def served_layers(host: Host, keys: Sequence[str]) -> dict[str, str]:
    """Layer key -> key of the layer whose recording serves it too, found by one run at the smallest size.

    A layer that does not run is not among them.
    """

    @torch.no_grad()
    def run() -> None:
        conditioning = host.encode([""])
        smallest = torch.zeros(1, host.latent_channels, 8, 8, device=host.device)
        host.denoise(smallest, torch.zeros(1, dtype=torch.long, device=host.device), conditioning)

    ordered = sorted(keys, key=lambda key: not is_text_encoder(key))
    return shared_inputs(host.layers(), ordered, run)


@torch.no_grad()
def record_run(
    host: Host, run: Run, capacity: Mapping[str, int], seed: int, progress: Progress
) -> Mapping[str, Tensor]:
    """The inputs of layers in one run of the model: layer key -> `[n, d_in]`, fp16 on the CPU.

    Args:
        capacity: layer key -> rows to keep at most; the layers to record
        seed: of the choice of rows
    """
    with host.apply(run.deltas), record_inputs(host.layers(), capacity, seed=seed) as recorder:
        for start in range(0, run.samples, BATCH):
            part = slice(start, min(start + BATCH, run.samples))
            run.evaluate(part, recorder.attempt)
            progress.advance(part.stop - start, run.teacher.name)
    return recorder.result()
