"""The loaded model with any of a merge's LoRAs active, as teachers and measurements ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..model import ALONE, Conditioning, Factors, Host, Processes, free_on_card, together
from ..progress import Progress
from ..request import RecordingOptions
from .sampling import BATCH, evaluated
from .shelf import Shelf


class Predictor:
    """A host, the concepts' deltas, and how denoising paths are made: all that it takes to ask what some concepts predict.

    Attributes:
        processes: that ask together, each its part; set where there are several
    """

    processes: Processes = ALONE

    def __init__(
        self,
        host: Host,
        deltas: Sequence[Mapping[str, Factors]],
        recording: RecordingOptions,
        *,
        negative_prompt: str,
        background: tuple[int, ...],
        memory: int,
        progress: Progress,
        shelf: Shelf | None = None,
    ) -> None:
        """
        Args:
            deltas: per concept, its weight inside
            background: the concepts that are active whatever the prompt
            memory: bytes that may be taken
            shelf: where what is recorded is kept
        """
        self.host, self.deltas, self.recording = host, deltas, recording
        self.negative_prompt, self.background = negative_prompt, background
        self.memory, self.progress, self._shelf = memory, progress, shelf
        self.size = (recording.height or host.default_size, recording.width or host.default_size)

    def activation_budget(self, reserved: int) -> int:
        """Bytes that activations may take: most of what is free on a graphics card, the memory budget in RAM.

        Args:
            reserved: bytes that will be taken on the card beside them
        """
        free = free_on_card(self.host.device)
        return self.memory if free is None else int(0.7 * (free - reserved))

    def together(self, active: Sequence[int], strength: float = 1.0) -> dict[str, tuple[Factors, ...]]:
        """The deltas of the active concepts, each so many times as strong as it is; `Host.apply` adds them."""
        networks = [self.deltas[i] for i in active]
        if strength != 1:
            networks = [{key: factors.scaled(strength) for key, factors in own.items()} for own in networks]
        return together(networks)

    @torch.no_grad()
    def encode(self, active: Sequence[int], prompts: Sequence[str], strength: float = 1.0) -> Conditioning:
        """Conditioning of prompts with these concepts active, as of `together`."""
        with self.host.apply(self.together(active, strength)):
            return self.host.encode(prompts)

    def kept(
        self,
        what: str,
        active: Sequence[int],
        content: Sequence[object],
        compute: Callable[[], Mapping[str, Tensor]],
        *,
        units: int,
        note: str,
    ) -> Mapping[str, Tensor]:
        """What `compute` computes, or computed before (`Shelf.tensors`); progress is told of it either way.

        Args:
            units: of progress, that computing it tells
        """
        if self._shelf is None:
            return compute()
        computed = []

        def noted() -> Mapping[str, Tensor]:
            computed.append(True)
            return compute()

        tensors = self._shelf.tensors(what, active, content, noted)
        if not computed:
            self.progress.found(units, note)
        return tensors

    def record(
        self,
        active: Sequence[int],
        x: Tensor,
        t: Tensor,
        prompts: Sequence[str],
        note: str = "",
        *,
        strength: float = 1.0,
    ) -> Tensor:
        """As `predict`, and kept."""

        def compute() -> Mapping[str, Tensor]:
            return {"prediction": self.predict(active, x, t, prompts, note, strength=strength)}

        asked = (x, t, prompts, strength)
        return self.kept("prediction", active, asked, compute, units=len(t), note=note)["prediction"]

    @torch.no_grad()
    def predict(
        self,
        active: Sequence[int],
        x: Tensor,
        t: Tensor,
        prompts: Sequence[str],
        note: str = "",
        *,
        strength: float = 1.0,
        units: int = 1,
    ) -> Tensor:
        """Predictions with these concepts active, `[n, c, h, w]` fp16 on the CPU.

        Args:
            x: noisy latents `[n, c, h, w]`
            t: timesteps `[n]`
            prompts: `n`
            note: for progress
            strength: as of `together`
            units: of progress per sample; 0 where asking is part of another stage
        """
        results = []
        with self.host.apply(self.together(active, strength)):
            for start in range(0, len(t), BATCH * 2):
                part = slice(start, start + BATCH * 2)
                conditioning = self.host.encode(list(prompts[part]))
                noisy = x[part].to(self.host.device).float()
                output = evaluated(self.host, noisy, t[part].to(self.host.device), conditioning)
                results.append(output.half().cpu())
                self.progress.advance(units * len(output), note)
        return torch.cat(results)
