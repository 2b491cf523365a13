"""Add to this one: a merge that goes on from a LoRA that LoRACLR merged, with the LoRAs that are chosen besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import LoraclrError
from ...hosts import running
from ...merge import Finished, Start, merged_from
from ...output import read_recipe
from ...request import MergeRequest
from ...solving import Procedure
from . import wording
from .adding_fields import FIELD


@dataclass(frozen=True)
class Base:
    """A merged LoRA that a merge goes on from.

    Attributes:
        lora: its file
        request: what it was asked for, with the paths of the installed LoRAs that it was made from
    """

    lora: running.InstalledLora
    request: MergeRequest

    @property
    def start(self) -> Start:
        """As far as plans and estimates need it: without factors."""
        return _planned(self.request)

    def require_added(self, request: MergeRequest) -> None:
        """Refuse what is no addition to it.

        Raises:
            LoraclrError: one of its LoRAs is not in the request, no other one is, or there is no refinement to add it by
        """
        paths = {concept.label: concept.lora for concept in request.concepts}
        missing = [own.label for own in self.request.concepts if paths.get(own.label) != own.lora]
        if missing:
            raise LoraclrError(
                f"{self.lora.name} holds {', '.join(missing)}, which is not chosen any more: choose it again, or merge afresh."
            )
        if len(paths) == len(self.request.concepts):
            raise LoraclrError(f"Nothing is chosen to add to {self.lora.name}: choose at least one LoRA more.")
        self.start.refinement(Procedure.of(request).refinement(len(paths)), paths)


def base(name: str) -> Base:
    """The merged LoRA of that name, with the LoRAs that it was made from.

    Raises:
        LoraclrError: there is none of that name, LoRACLR did not merge it, or one of its LoRAs is not installed or was changed
    """
    lora = running.find_lora(name)

    def installed(file: str) -> list[Path]:
        return [own.path for own in running.installed_loras() if own.path.name == file]

    try:
        request = merged_from(lora.path, installed, "install that one, or merge afresh")
    except LoraclrError as error:
        raise wording.reworded(error, {str(lora.path): lora.name}) from error
    return Base(lora, request)


def of(fields: Mapping[str, Any], request: MergeRequest) -> Base | None:
    """What the tab's fields ask to go on from; None for a merge from nothing.

    Raises:
        LoraclrError: as of `base` and `Base.require_added`
    """
    name = fields.get(FIELD)
    if not name:
        return None
    found = base(name)
    found.require_added(request)
    return found


def glimpse(fields: Mapping[str, Any]) -> Start | None:
    """The same for an estimate that is wanted at once: only what the WebUI has in memory is looked at.

    Raises:
        LoraclrError: there is no merged LoRA of that name
    """
    name = fields.get(FIELD)
    if not name:
        return None
    request, _ = read_recipe(running.find_lora(name).texts, name)
    return _planned(request)


def _planned(request: MergeRequest) -> Start:
    """A start as far as plans and estimates need it."""
    return Start((Finished({}, frozenset(concept.label for concept in request.concepts)),))
