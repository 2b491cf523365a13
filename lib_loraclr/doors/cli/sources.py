"""Requests that are read from files: as JSON, and out of merged files."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...errors import LoraclrError
from ...files import read_header, require_safetensors
from ...merge import merged_from
from ...output import went_on
from ...request import Concept, MergeRequest


def request_named(arguments: argparse.Namespace) -> MergeRequest:
    """What `--request`, `--recipe-from` or `--add-to` name; without any of them a request for nothing.

    Raises:
        LoraclrError: there is no such file, it cannot be read, or a LoRA that it names is not there
    """
    folders = [Path(folder) for folder in getattr(arguments, "lora_dir", [])]
    if getattr(arguments, "request", None):
        return _from_json(Path(arguments.request))
    if getattr(arguments, "recipe_from", None):
        path = Path(arguments.recipe_from)
        require_safetensors(path)
        if went_on(read_header(path).metadata):
            raise LoraclrError(
                f"{path} went on from a finished merge, which its recipe does not hold: name that one with --add-to and the "
                "LoRAs that were added, or merge all of them afresh."
            )
        return from_recipe(path, folders)
    if getattr(arguments, "add_to", None):
        return _joined([Path(path) for path in arguments.add_to], folders, adding=bool(arguments.loras))
    return MergeRequest(())


def _joined(paths: Sequence[Path], folders: Sequence[Path], *, adding: bool) -> MergeRequest:
    """The concepts of all these merged files, asked for as the first of them was.

    Args:
        adding: whether others are added to them

    Raises:
        LoraclrError: as of `from_recipe`; a concept is in two of them, or there is nothing to add to the only one
    """
    if len(paths) == 1 and not adding:
        raise LoraclrError(f"Nothing is named to add to {paths[0]}: name at least one LoRA, or another merged file.")
    requests = [from_recipe(path, folders) for path in paths]
    holders: dict[str, Path] = {}
    for path, request in zip(paths, requests, strict=True):
        for concept in request.concepts:
            if concept.label in holders:
                raise LoraclrError(
                    f"{concept.label} is in both {holders[concept.label]} and {path}: leave one of them out, and name what "
                    "else it holds."
                )
            holders[concept.label] = path
    return dataclasses.replace(
        requests[0], concepts=tuple(concept for request in requests for concept in request.concepts)
    )


def read_text(path: Path, what: str) -> str:
    """A text file that a person wrote.

    Raises:
        LoraclrError: there is none, or it is no text
    """
    if not path.is_file():
        raise LoraclrError(f"There is no {what} {path}: check the name and the folder.")
    try:
        return path.read_text("utf-8-sig")  # Notepad puts a byte order mark first
    except UnicodeDecodeError:
        raise LoraclrError(f"The {what} {path} is not UTF-8 text: save it as UTF-8.") from None


def beside(path: Path, concept: Concept) -> Concept:
    """Relative names in a request file are meant from the file's folder."""
    there = path.parent / concept.lora
    return dataclasses.replace(concept, lora=str(there)) if there.is_file() else concept


def _from_json(path: Path) -> MergeRequest:
    text = read_text(path, "request file")
    try:
        request = MergeRequest.from_json(text)
    except LoraclrError as error:
        raise LoraclrError(f"{path}: {error}") from None
    return dataclasses.replace(request, concepts=tuple(beside(path, concept) for concept in request.concepts))


def from_recipe(path: Path, folders: Sequence[Path]) -> MergeRequest:
    """The request inside a merged file, its LoRAs found again by name and told apart by hash.

    Raises:
        LoraclrError: it is no merged file, or a LoRA is nowhere to be found
    """

    def there(name: str) -> list[Path]:
        return [place for place in (folder / name for folder in (*folders, path.parent, Path.cwd())) if place.is_file()]

    return merged_from(path, there, "name the folder that holds it with --lora-dir")
