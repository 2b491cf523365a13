"""What a result is called: a name of its own from the LoRAs in it, and what is wrong with one that a person writes."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import LoraclrError
from ...hosts import running
from ...request import clean_name, output_path
from . import settings


def short_name(names: Sequence[str]) -> str:
    """A name that says what is inside, with no character that a file or a prompt reserves."""
    if not names:
        return ""
    short = "-".join(names[:3]) if len(names) <= 3 else f"{'-'.join(names[:2])}-and-{len(names) - 2}-more"
    return clean_name(short if len(short) <= 60 else f"merge-of-{len(names)}")


def whole_name(name: str, sub_folder: str) -> str:
    """Name and sub-folder as `output_path` takes them."""
    folder = sub_folder.strip().replace("\\", "/").strip("/")
    return f"{folder}/{name.strip()}" if folder else name.strip()


def free_whole_name(names: Sequence[str], save_as: str) -> str:
    """A name that is free, with the sub-folder of the settings; of a checkpoint without.

    Args:
        names: of the LoRAs in the merge
        save_as: what it is saved as

    Raises:
        LoraclrError: the sub-folder of the settings is none that a file may be in
    """
    return next_free(proposal(names, save_as), save_as)


def proposal(names: Sequence[str], save_as: str) -> str:
    """The LoRAs' names, in the sub-folder of the settings; a checkpoint's without."""
    return whole_name(short_name(names), "" if save_as == "checkpoint" else settings.value("loraclr_sub_folder"))


def next_free(wanted: str, save_as: str) -> str:
    """A name, or the next one that is free.

    Raises:
        LoraclrError: no file may be called so
    """
    if save_as == "checkpoint":
        return running.free_checkpoint_name(wanted)
    folder, _, name = wanted.rpartition("/")
    return running.free_name(name, folder)


def proposed(names: Sequence[str], save_as: str) -> str:
    """What stands in a result's field: a free name without its folder, or the LoRAs' names where none can be found."""
    try:
        return free_whole_name(names, save_as).rsplit("/", 1)[-1]
    except LoraclrError:
        return short_name(names)


def obstacle(name: str, sub_folder: str, save_as: str) -> str:
    """Why no file may be called that; empty where one may.

    Args:
        name: empty for the one that is proposed, which is always right
    """
    folder = running.checkpoint_dir() if save_as == "checkpoint" else running.lora_dir()
    try:
        output_path(folder, whole_name(name.strip() or "x", sub_folder))
    except LoraclrError as error:
        return str(error)
    return ""
