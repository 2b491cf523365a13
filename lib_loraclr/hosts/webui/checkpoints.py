"""The WebUI's folder of checkpoints, and the place of new ones."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from ...errors import LoraclrError
from ...request import output_path
from . import modules


@dataclass(frozen=True)
class InstalledCheckpoint:
    """A checkpoint that the WebUI lists.

    Attributes:
        name: the file's name without folder and extension
        title: what the WebUI lists it by
        path: the file
    """

    name: str
    title: str
    path: Path


def checkpoint_dir() -> Path:
    """The folder that new checkpoints go to, as the WebUI's own merger has it (`modules/extras.py`)."""
    return Path(modules.module("shared").cmd_opts.ckpt_dir or modules.module("sd_models").model_path)


def free_checkpoint_name(wanted: str) -> str:
    """`wanted`, or `wanted-2`, `wanted-3`, …: a name (with its sub-folder) that no checkpoint and no file beside one has.

    Raises:
        LoraclrError: a name that no file may have
    """
    known = modules.module("sd_models").checkpoints_list.values()
    taken = {info.name_for_extra.lower() for info in known}
    number = 1
    while True:
        whole = wanted if number == 1 else f"{wanted}-{number}"
        path = output_path(checkpoint_dir(), whole)
        siblings = path.parent.glob(f"{glob.escape(path.stem)}.*") if path.parent.is_dir() else ()
        if path.stem.lower() not in taken and not any(siblings):
            return whole
        number += 1


def announce_checkpoint(path: Path) -> InstalledCheckpoint:
    """Make the WebUI list a checkpoint that was written.

    Raises:
        LoraclrError: the file is not in a folder that the WebUI lists
    """
    models = modules.module("sd_models")
    models.list_models()
    for info in models.checkpoints_list.values():
        if Path(info.filename).resolve() == path.resolve():
            return InstalledCheckpoint(info.name_for_extra, info.title, path)
    raise LoraclrError(
        f"The WebUI does not list {path}: it is not in one of its checkpoint folders ({checkpoint_dir()})."
    )
