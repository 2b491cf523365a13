"""Keep: a merge written where the WebUI finds it. Replace: what was there can be put back until it is replaced again."""

from __future__ import annotations

import threading
from pathlib import Path

from ...errors import LoraclrError
from ...files import Written
from ...hosts import running
from ...output import Merge, Pictures, write_merge
from ...request import output_path

#: whoever writes or puts back waits for the one before, so that a name that is free stays free
_one_at_a_time = threading.RLock()
#: what was replaced last under each name, and is kept for it
_replaced: dict[Path, Written] = {}


class NameTaken(LoraclrError):
    """The file exists; asking again with `overwrite` replaces it."""


def write(
    merge: Merge, pictures: Pictures | None, name: str, *, overwrite: bool, with_sheet: bool = False
) -> tuple[running.InstalledLora | running.InstalledCheckpoint, Written]:
    """Write the file and make the WebUI list it.

    Args:
        pictures: for its card, and to judge it by
        name: inside the LoRA folder, sub-folders separated by "/"; a checkpoint goes into the folder of checkpoints, under the
            next free name if this one is taken
        overwrite: replace a LoRA of that name; a checkpoint is never replaced
        with_sheet: write the picture to judge it by as well, as `NAME.report.png`

    Raises:
        LoraclrError: a name that may not be or is taken, it cannot be written, or the WebUI would not list it; nothing is changed
    """
    wanted = name.strip().replace("\\", "/")
    card, sheet = (pictures.card, pictures.sheet) if pictures else (None, None)
    drawn = {"preview": card, "sheet": sheet if with_sheet else None}
    with _one_at_a_time:
        if merge.request.save_as == "checkpoint":
            path = output_path(running.checkpoint_dir(), running.free_checkpoint_name(wanted))
            written, announce = write_merge(merge, path, **drawn), running.announce_checkpoint
        else:
            path = _lora_path(wanted, overwrite=overwrite)
            # pictures of what is replaced show another merge
            written = write_merge(merge, path, **drawn, overwrite=overwrite, stale=running.previews(path))
            announce = running.announce
        try:
            kept = announce(path)
        except LoraclrError:  # a file that nobody can choose is in everybody's way
            written.undo()
            raise
        former = _replaced.pop(path, None)
        if former:
            former.forget()
        if written.replaced:
            _replaced[path] = written
        return kept, written


def _lora_path(name: str, *, overwrite: bool) -> Path:
    path = output_path(running.lora_dir(), name)
    taken = {lora.name.lower(): lora for lora in running.installed_loras()}.get(path.stem.lower())
    if taken and taken.path.resolve() != path.resolve():
        raise LoraclrError(
            f"{path.stem} is the name of another LoRA, and prompts tell LoRAs apart by name only: rename."
        )
    if not overwrite and any(
        path.with_suffix(suffix).exists() for suffix in (".safetensors", ".json", ".png", ".report.png")
    ):
        raise NameTaken(f"{name} exists already: choose another name, or replace it.")
    return path


def can_be_put_back(written: Written | None) -> bool:
    """Whether something was written, and replaced something that is still kept."""
    return written is not None and _replaced.get(written.paths[0]) is written


def put_back(written: Written) -> None:
    """Delete what was written, and put back the file, card and pictures that it replaced.

    Raises:
        LoraclrError: it replaced nothing, was replaced itself since, was changed since, or a file cannot be moved
    """
    path = written.paths[0]
    with _one_at_a_time:
        if not can_be_put_back(written):
            raise LoraclrError(f"There is nothing to put back: {path.stem} replaced nothing, or was replaced since.")
        written.put_back()
        del _replaced[path]
        if path.exists():
            running.announce(path)
        else:  # only a card or a picture had the name before
            running.installed_loras(rescan=True)


def forget_all() -> None:
    """Let go of everything that was replaced."""
    with _one_at_a_time:
        for written in _replaced.values():
            written.forget()
        _replaced.clear()
