"""The checkpoint that reForge has loaded: models in an engine like Forge's, and prompts read by AUTOMATIC1111's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    def reading(model: Any) -> AbstractContextManager[None]:
        return webui.infotext_untouched()

    @contextmanager
    def knowing(self, embeddings: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
        with webui.bundled_embeddings(self.model, embeddings, self.checkpoint) as (known, warnings):
            yield (*warnings, *unread(known, "reForge"))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        read = webui.read(self.model, prompts).tensors
        return Conditioning({n: tensor if n == "length" else tensor.to(self.device) for n, tensor in read.items()})

    def _size_vector(self, x: Tensor, conditioned: Conditioning) -> Tensor:
        return webui.size_vector(self.model, x, conditioned)
