"""Embeddings that LoRAs bundle, registered for a while with each text encoder's own reader of prompts.

Forge itself makes nothing of them (`networks.load_lora_for_models`): a prompt with such a LoRA reads their names as plain words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ...files import embedding_misfit, embeddings_by_name, vectors_per_encoder
from . import engine


@contextmanager
def known(model: Any, tensors: Mapping[str, Tensor], checkpoint: str) -> Iterator[tuple[str, ...]]:
    """As `Host.knowing`; an installed embedding of the same name stays in its place."""
    make = engine.module("text_processing.textual_inversion").create_embedding_from_data
    engines = engine.text_engines(model)
    databases = [reader.embeddings for reader in engines.values()]
    widths = [_width(reader) for reader in engines.values()]
    warnings, registered = [], []
    try:
        for name, parts in embeddings_by_name(tensors).items():
            if any(name in database.word_embeddings for database in databases):
                warnings.append(
                    f"An embedding {name} is installed, and prompts call it in place of the bundled one, now and later: "
                    "rename or remove the installed one if that is not meant."
                )
            elif vectors_per_encoder(parts, widths) is None:
                warnings.append(embedding_misfit(name, checkpoint))
            else:
                registered.append(name)
                for database in databases:
                    database.register_embedding(make(dict(parts), name))
        yield tuple(warnings)
    finally:
        for name in registered:
            for database in databases:
                database.register_embedding_by_name(None, name)


def _width(reader: Any) -> int:
    """Numbers in one vector of a text encoder's vocabulary."""
    return reader.text_encoder.transformer.text_model.embeddings.token_embedding.weight.shape[1]
