"""The checkpoint that reForge has loaded: models in an engine like Forge's, and prompts read by AUTOMATIC1111's code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ...model import Conditioning
from .. import webui
from .embeddings import unread
from .host import ForgeHost


class ReforgeHost(ForgeHost):
    """As `ForgeHost`."""

    name = "reforge"

    @staticmethod
    @contextmanager
    def reading(model: Any) -> Iterator[None]:
        with webui.infotext_untouched(), _unmoved():
            yield

    @contextmanager
    def knowing(self, embeddings: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
        with webui.bundled_embeddings(self.model, embeddings, self.checkpoint) as (known, warnings):
            yield (*warnings, *unread(known, "reForge"))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        read = webui.read(self.model, prompts).tensors
        return Conditioning({n: tensor if n == "length" else tensor.to(self.device) for n, tensor in read.items()})

    def _size_vector(self, x: Tensor, conditioned: Conditioning) -> Tensor:
        return webui.size_vector(self.model, x, conditioned)


@contextmanager
def _unmoved() -> Iterator[None]:
    """Prompts read where the session has put the text encoders: reForge loads them before every prompt, which may push out the
    UNet that a merge is running."""
    readers = [sys.modules.get(name) for name in ("modules_forge.forge_clip", "modules.sd_models_xl")]
    moves = [(reader, reader.move_clip_to_gpu) for reader in readers if hasattr(reader, "move_clip_to_gpu")]
    for reader, _ in moves:
        reader.move_clip_to_gpu = lambda: None
    try:
        yield
    finally:
        for reader, move in moves:
            reader.move_clip_to_gpu = move
