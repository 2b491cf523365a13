"""The merges that were made here: a log beside the WebUI's settings, and the recipes in the files themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modules import errors, shared

from ...errors import LoraclrError
from ...files import replace_file
from ...hosts import running
from ...output import Merge, read_recipe
from ...request import MergeRequest
from ...solving import Procedure
from . import catalogue, history_log
from .history_log import Entry

if TYPE_CHECKING:
    from .job import Job

#: merges that are remembered
_REMEMBERED = 200
_guard = threading.Lock()


def request_of(entry: Entry) -> MergeRequest:
    """What a merge was asked for, as it can be asked for again.

    Raises:
        LoraclrError: the recipe cannot be read or asks for what there is not, or the file that had it is gone
    """
    request = entry.request() if entry.recipe else read_recipe(running.find_lora(entry.name).texts, entry.name)[0]
    request.check()
    Procedure.of(request)
    return request


def record(job: Job, merge: Merge, name: str) -> None:
    """Remember a merge that was kept just now; where that fails nothing else does.

    Args:
        name: of the file, without folder and extension
    """
    recipe = merge.request.to_dict()
    for concept, lora in zip(recipe["concepts"], job.names, strict=True):
        concept["lora"] = f"{lora}.safetensors"  # no folder of this computer
    figures = {concept.name: concept.recognised for concept in merge.report.concepts}
    told = (merge.request.save_as, merge.target.checkpoint, figures, recipe)
    _rewrite(lambda known: [*known, Entry(job.id, name, time.time(), *told)])


def forget(job_id: str) -> None:
    """A merge that was put back is none that was made."""
    _rewrite(lambda known: [entry for entry in known if entry.id != job_id])


def entries() -> list[Entry]:
    """The merges, the latest first; of several kept under one name the latest, and files that were merged elsewhere."""
    found: dict[tuple[str, bool], Entry] = {}
    for entry in sorted([*_of_files(), *_logged()], key=lambda entry: (bool(entry.recipe), entry.date)):
        found[entry.name, entry.save_as == "checkpoint"] = entry
    return sorted(found.values(), key=lambda entry: -entry.date)


def files(found: Iterable[Entry]) -> dict[str, running.InstalledLora]:
    """Entry's id -> its file, of the LoRAs that are still installed; no folder is looked at again for those that are not."""
    installed = {lora.name: lora for lora in running.installed_loras()}
    return {
        entry.id: installed[entry.name] for entry in found if entry.save_as != "checkpoint" and entry.name in installed
    }


def find(entry_id: str) -> Entry:
    """One of the merges.

    Raises:
        LoraclrError: there is none of that id
    """
    for entry in entries():
        if entry.id == entry_id:
            return entry
    raise LoraclrError("That merge is not in the history any more: open it anew.")


def merged_loras() -> list[running.InstalledLora]:
    """The installed LoRAs that LoRACLR merged, here or elsewhere, by name."""
    return [lora for lora in running.installed_loras() if catalogue.is_merged(lora)]


def requests() -> Iterator[tuple[running.InstalledLora, MergeRequest]]:
    """The installed LoRAs that LoRACLR merged, and what was asked for each; without those whose recipe cannot be read."""
    for lora in merged_loras():
        with suppress(LoraclrError):
            yield lora, read_recipe(lora.texts, lora.name)[0]


def _of_files() -> Iterator[Entry]:
    for lora, request in requests():
        with suppress(OSError):
            date, checkpoint = lora.path.stat().st_mtime, lora.texts.get("loraclr.checkpoint", "")
            figures = dict.fromkeys(concept.label for concept in request.concepts)
            yield Entry(f"file {lora.name}", lora.name, date, request.save_as, checkpoint, figures)


def _path() -> Path | None:
    """The log, beside the file with the WebUI's settings."""
    settings = getattr(shared.cmd_opts, "ui_settings_file", None)
    return Path(settings).absolute().parent / "loraclr-history.json" if settings else None


def _logged() -> list[Entry]:
    path = _path()
    try:
        return history_log.read(path.read_text("utf-8")) if path else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        errors.report(f"LoRACLR: {path.name} cannot be read, and the history begins anew", exc_info=True)
        return []


def _rewrite(change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Write the log as it is after a change, whole or not at all."""
    path = _path()
    if path is None:
        return
    with _guard:
        text = history_log.write(change(_logged())[-_REMEMBERED:])
        try:
            replace_file(path, lambda stream: stream.write(text.encode()))
        except LoraclrError:  # the merge is kept all the same
            errors.report("LoRACLR: the history of merges could not be written", exc_info=True)
