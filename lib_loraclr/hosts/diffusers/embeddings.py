"""Embeddings that prompts call by name, in transformers' text encoders.

As in the WebUI, a name is found by its tokens wherever they stand in a prompt, and its vectors take the place of the tokens'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer


@dataclass(frozen=True)
class Place:
    """Where vectors take the place of tokens.

    Attributes:
        row: of the batch
        start: position of the first vector
        vectors: `[n, d]`
    """

    row: int
    start: int
    vectors: Tensor


def tokenized(
    tokenizer: CLIPTokenizer, prompts: Sequence[str], vectors: Mapping[str, Tensor], length: int
) -> tuple[Tensor, list[Place]]:
    """Tokens of prompts, `[b, length]`, with room for the embeddings that they call, and where those belong.

    Args:
        vectors: name -> `[n, d]`
        length: begin and end included; what is beyond is cut off
    """
    names = [(_tokens(tokenizer, name), own) for name, own in vectors.items()]
    # the longest name wins, as in the WebUI
    names = sorted(((name, own) for name, own in names if name), key=lambda item: -len(item[0]))
    rows, places = [], []
    for row, prompt in enumerate(prompts):
        tokens, found = _with_room(_tokens(tokenizer, prompt), names)
        tokens = [tokenizer.bos_token_id, *tokens[: length - 2], tokenizer.eos_token_id]
        rows.append(tokens + [tokenizer.pad_token_id] * (length - len(tokens)))
        places += [Place(row, start + 1, own[: length - 2 - start]) for start, own in found if start < length - 2]
    return torch.tensor(rows), places


def _tokens(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _with_room(
    tokens: Sequence[int], names: Sequence[tuple[list[int], Tensor]]
) -> tuple[list[int], list[tuple[int, Tensor]]]:
    """The tokens with a name's replaced by one for each of its vectors, and where each name's begin."""
    made: list[int] = []
    found, at = [], 0
    while at < len(tokens):
        match = next(((name, own) for name, own in names if list(tokens[at : at + len(name)]) == name), None)
        if match is None:
            made.append(tokens[at])
            at += 1
            continue
        name, own = match
        found.append((len(made), own))
        made += [0] * len(
            own
        )  # which token holds the place does not matter, as long as it is not the one that ends a prompt
        at += len(name)
    return made, found


@contextmanager
def in_place(table: nn.Module, places: Sequence[Place]) -> Iterator[None]:
    """Let a text encoder's table of tokens answer with the vectors where they belong."""

    def replaced(_: nn.Module, __: object, rows: Tensor) -> Tensor:
        rows = rows.clone()
        for place in places:
            rows[place.row, place.start : place.start + len(place.vectors)] = place.vectors.to(rows)
        return rows

    handle = table.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()
