"""One layer of a merge: its problem, from what was recorded, and its solution where there is room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model import Host, free_cached, is_out_of_memory
from ..recording import Teacher
from ..solving import Cut, LayerProblem, MergedLayer, Procedure, Recording, merge_layer
from .start import Networks

_SOLVED_ON_CPU = "The graphics memory was too small for some layers: they were merged on the CPU, which takes longer."

#: what a run of the model recorded: on whose prompts, and layer key -> `[n, d_in]`
Recorded = tuple[Teacher, Mapping[str, Tensor]]


class LayerMerger:
    """Merges the layers of one merge, each by itself.

    Attributes:
        trouble: warnings
    """

    def __init__(self, host: Host, networks: Networks, serves: Mapping[str, str], subjects: Sequence[int]) -> None:
        """
        Args:
            networks: what the layers are made of
            serves: which recording serves each layer (`recording.served_layers`)
            subjects: numbers of the concepts that are subjects
        """
        self._host, self._networks, self._serves, self._subjects = host, networks, serves, subjects
        self.trouble: tuple[str, ...] = ()

    def merge(self, key: str, procedure: Procedure, cut: Cut, recorded: Sequence[Recorded]) -> MergedLayer:
        """One layer, on the CPU where the graphics card has no room for it."""

        def merged(device: torch.device) -> MergedLayer:
            problem = self.problem(key, recorded, device, weight=procedure.method.weight)
            return merge_layer(problem, procedure.method, procedure.options, cut)

        device = self._host.device
        try:
            return merged(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # here, where the error and all that it holds on the card are gone
        free_cached(device)
        self.trouble = (_SOLVED_ON_CPU,)
        layer = merged(torch.device("cpu"))
        return replace(layer, factors=layer.factors.to(device))

    def problem(
        self, key: str, recorded: Sequence[Recorded], device: torch.device, *, weight: bool = False
    ) -> LayerProblem:
        """One layer in fp32.

        Args:
            weight: whether the layer's own weight is asked for
        """
        recordings = tuple(
            self._recording(teacher, inputs[self._serves[key]].to(device, torch.float32))
            for teacher, inputs in recorded
        )
        to = (device, torch.float32)
        layer = self._host.layers()[key]
        own = layer.weight.detach().reshape(layer.shape).to(*to) if weight else None
        deltas = tuple(delta and delta.to(*to) for delta in self._networks.deltas(key))
        return LayerProblem(key, deltas, recordings, own)

    def _recording(self, teacher: Teacher, inputs: Tensor) -> Recording:
        """What entered a layer, `[n, d_in]`, on a teacher's prompts."""
        of = self._networks.of
        active = of(teacher.active)
        rivals = dict.fromkeys(of(rival) for rival in teacher.rivals(self._subjects))
        apart = tuple(rival for rival in rivals if rival != active)
        return Recording(inputs, active, teacher.importance, apart, of(teacher.absent))
