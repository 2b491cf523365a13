"""Embeddings that LoRAs bundle, registered for a while as the WebUI registers them while such a LoRA is active."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ...files import embedding_misfit, embeddings_by_name
from .. import webui


@contextmanager
def known(model: nn.Module, tensors: Mapping[str, Tensor], checkpoint: str) -> Iterator[tuple[str, ...]]:
    """As `Host.knowing`; like the WebUI it leaves an installed embedding of the same name in its place."""
    database = webui.module("sd_hijack").model_hijack.embedding_db
    make = webui.module("textual_inversion.textual_inversion").create_embedding_from_data
    warnings, registered = [], []
    try:
        for name, parts in embeddings_by_name(tensors).items():
            embedding = make(dict(parts), name)
            if name in database.word_embeddings:
                warnings.append(
                    f"An embedding {name} is installed, and prompts call it in place of the bundled one, now and later: "
                    "rename or remove the installed one if that is not meant."
                )
            elif database.expected_shape not in (-1, embedding.shape):
                warnings.append(embedding_misfit(name, checkpoint))
            else:
                registered.append(name)
                database.register_embedding(embedding, model)
        yield tuple(warnings)
    finally:
        for name in registered:
            database.register_embedding_by_name(None, model, name)
