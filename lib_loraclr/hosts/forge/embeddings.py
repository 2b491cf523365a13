"""Embeddings that LoRAs bundle, registered for a while with each text encoder's own reader of prompts.

Forge itself makes nothing of them (`networks.load_lora_for_models`): a prompt with such a LoRA reads their names as plain words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ...files import embedding_misfit, embeddings_by_name, vectors_per_encoder
from . import engine

#: tensors of a file that Forge may know nothing of (`networks.load_lora_for_models`)
_MOST_UNKNOWN = 12


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
        yield (*warnings, *unread(registered, "Forge"), *_dropped(len(tensors)))
    finally:
        for name in registered:
            for database in databases:
                database.register_embedding_by_name(None, name)


def unread(names: Sequence[str], program: str) -> Iterator[str]:
    """What the WebUI makes of the embeddings in the merged file, which carries them on.

    Args:
        names: of embeddings that prompts called while the merge was recorded
        program: what the WebUI is called
    """
    if names:
        yield (
            f"{program} reads no embeddings that a LoRA bundles: the merge is recorded with {', '.join(names)}, and prompts here "
            "call it only when it is a file of its own in the embeddings folder."
        )


def _dropped(tensors: int) -> Iterator[str]:
    """What Forge makes of a merged file with so many tensors of embeddings."""
    if tensors > _MOST_UNKNOWN:
        yield (
            f"The merged file carries {tensors} tensors of embeddings, and Forge drops a LoRA whole in which more than "
            f"{_MOST_UNKNOWN} are unknown to it: leave out the LoRAs that bundle them, or use the file in AUTOMATIC1111's WebUI."
        )


def _width(reader: Any) -> int:
    """Numbers in one vector of a text encoder's vocabulary."""
    return reader.text_encoder.transformer.text_model.embeddings.token_embedding.weight.shape[1]
