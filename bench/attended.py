"""Rows that look at the trigger: in the layer-wise recording a place of the picture counts by how much it attends to those words.

The outlook of the LoRACLR paper (arXiv 2412.09622). What a concept is shows where the picture is drawn from its words, and not on
the background, where every concept does the same. How much a place looks at a word is the cross-attention probability that
Prompt-to-Prompt (Hertz et al., arXiv 2208.01626, section 3) reads such maps from.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge import Stages, recorded_points
from lib_loraclr.merge.layer_merging import Recorded
from lib_loraclr.model import Factors, Layer
from lib_loraclr.progress import Progress
from lib_loraclr.recording import BATCH, Examples, Run
from lib_loraclr.recording.input_rows import Reservoir, input_rows


@dataclass(frozen=True)
class AttendedRun(Run):
    """A run of the UNet at some of a teacher's points.

    Attributes:
        points: those
    """

    points: Examples


class AttendedRows(Stages):
    """Rows of a picture's places are scaled by the root of their weight: the solver sees weighted squared errors.

    A weight is the place's attention to the trigger's words relative to the mean over the picture, so that every recorded
    point counts as much as before. Rows that are no places of the picture (tokens, timesteps) and those of prompts that call
    nothing stay as they are.
    """

    def _unet_runs(self, examples: Sequence[Examples], merged: Mapping[str, Factors]) -> list[Run]:
        runs = super()._unet_runs(examples, merged)
        points = map(recorded_points, examples)
        return [
            AttendedRun(run.teacher, run.deltas, run.samples, run.evaluate, few)
            for run, few in zip(runs, points, strict=True)
        ]

    def _recorded(self, runs: Sequence[Run], capacity: Mapping[str, int]) -> list[Recorded]:
        if not all(isinstance(run, AttendedRun) for run in runs):
            return super()._recorded(runs, capacity)
        seed = self.request.seed
        return [(run.teacher, record_attending(self.host, run, capacity, seed, self.progress)) for run in runs]


@torch.no_grad()
def record_attending(
    host: DiffusersHost, run: AttendedRun, capacity: Mapping[str, int], seed: int, progress: Progress
) -> Mapping[str, Tensor]:
    """As `record_run`, each row scaled by the root of its weight: layer key -> `[n, d_in]`, fp16 on the CPU.

    Every batch runs twice: what the last layers attend to is not known when the first ones run.
    """
    points, words = run.points, run.teacher.words
    recorder = Recorder(host.layers(), capacity, seed)
    with host.apply(run.deltas):
        for start in range(0, run.samples, BATCH):
            part = slice(start, min(start + BATCH, run.samples))
            prompts = list(points.prompts[part])
            x, t = points.x[part].to(host.device).float(), points.t[part].to(host.device)
            run_once = partial(host.denoise, x, t, host.encode(prompts))
            called = tokens_of(host, prompts, words)
            recorder.weights = relative(attention_to(host, called, x.shape[-2:], run_once))
            with recorder.recording():
                run_once()
            progress.advance(part.stop - start, run.teacher.name)
    return recorder.result()


def tokens_of(host: DiffusersHost, prompts: Sequence[str], words: str) -> Tensor:
    """Which tokens of prompts are the words, wherever they stand, `[b, 77]`."""
    tokenizer = host.text_encoders[0].tokenizer
    wanted = tokenizer(words, add_special_tokens=False).input_ids
    rows = torch.tensor(tokenizer(list(prompts), padding="max_length", truncation=True, max_length=77).input_ids)
    found = torch.zeros(rows.shape, dtype=torch.bool)
    for start in range(rows.shape[1] - len(wanted) + 1 if wanted else 0):
        place = slice(start, start + len(wanted))
        found[:, place] |= (rows[:, place] == torch.tensor(wanted)).all(1, keepdim=True)
    return found


def attention_to(host: DiffusersHost, called: Tensor, size: Sequence[int], run: Callable[[], object]) -> Tensor:
    """How much each place of the latents attends to some tokens, `[b, h, w]`: their probability, the mean over the heads of every
    cross-attention, those of fewer places enlarged.

    Args:
        called: the tokens, `[b, 77]`
        size: `(h, w)` of the latents
        run: runs the UNet once on `b` samples
    """
    maps: list[Tensor] = []
    with _queries_and_keys(host) as seen:
        run()
        for module, (query, key) in seen.items():
            probability = probabilities(query, key, module.heads, module.scale)  # [b, heads, places, 77]
            attended = (probability * called.to(probability)[:, None, None]).sum(3).mean(1)
            smaller = (size[0] * size[1] / attended.shape[1]) ** 0.5
            places = attended.view(len(attended), 1, round(size[0] / smaller), -1)
            maps.append(nn.functional.interpolate(places, tuple(size), mode="nearest")[:, 0])
    return torch.stack(maps).mean(0)


def probabilities(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """`softmax(Q K^T · scale)` of each head, `[b, heads, places, tokens]`.

    Args:
        query: `[b, places, d]`
        key: `[b, tokens, d]`
    """
    query, key = (matrix.unflatten(2, (heads, -1)).transpose(1, 2) for matrix in (query, key))
    return (query @ key.mT * scale).softmax(3)


def cross_attentions(host: DiffusersHost) -> list[nn.Module]:
    """Of the UNet, in one order."""
    return [module for name, module in host.unet.named_modules() if name.endswith("attn2")]


@contextmanager
def _queries_and_keys(host: DiffusersHost) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Inside, what each cross-attention asks and is asked with is put there: module -> Q and K, which it makes in this order."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def keeping(attention: nn.Module) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: seen.setdefault(attention, []).append(output)

    handles = [
        projection.register_forward_hook(keeping(attention))
        for attention in cross_attentions(host)
        for projection in (attention.to_q, attention.to_k)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def relative(weights: Tensor) -> Tensor:
    """Weights `[b, h, w]` divided by the mean over each sample's places; 1 where all of a sample's are 0."""
    mean = weights.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, weights / mean, torch.ones_like(weights))


class Recorder:
    """What enters layers while the model runs, rows of places weighted.

    Attributes:
        weights: of the places of the samples that run next, `[b, h, w]`
    """

    def __init__(self, layers: Mapping[str, Layer], capacity: Mapping[str, int], seed: int) -> None:
        self.weights = torch.ones(0, 0, 0)
        self._layers = layers
        self._reservoirs = {key: Reservoir(rows, seed ^ zlib.crc32(key.encode())) for key, rows in capacity.items()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, the model runs once."""
        handles = [
            self._layers[key].module.register_forward_pre_hook(self._hook(key), with_kwargs=True)
            for key in self._reservoirs
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, key: str) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        reservoir, layer = self._reservoirs[key], self._layers[key]

        def record(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            count, gather = input_rows(layer.owner, layer.observed(module, arguments, named).detach())
            roots = row_weights(self.weights, count).sqrt()[:, None]
            reservoir.update(count, lambda index: gather(index) * roots[index])

        return record

    def result(self) -> dict[str, Tensor]:
        """Layer key -> `[n, d_in]`, fp16 on the CPU."""
        return {key: reservoir.result() for key, reservoir in self._reservoirs.items()}


def row_weights(weights: Tensor, count: int) -> Tensor:
    """The weight of each of a layer's rows, `[count]`: the mean over the places that a row stands for.

    Args:
        weights: of the places of the latents, `[b, h, w]`
        count: of rows; samples one after the other, and places row by row. 1 for each where it is none of a coarser picture
    """
    samples, height, width = weights.shape
    each = count // samples
    for smaller in (1, 2, 4, 8, 16):
        coarse = -(-height // smaller), -(-width // smaller)
        if coarse[0] * coarse[1] == each and count % samples == 0 and each > 1:
            return nn.functional.adaptive_avg_pool2d(weights[:, None], coarse).flatten()
    return torch.ones(count, dtype=weights.dtype, device=weights.device)
