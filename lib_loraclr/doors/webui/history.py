"""The merges that were made here: a log beside the WebUI's settings, and the recipes in the files themselves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules import errors, shared

from ...errors import LoraclrError
from ...hosts import running
from ...output import Merge, read_recipe
from ...request import MergeRequest

if TYPE_CHECKING:
    from .jobs import Job

#: merges that are remembered
_REMEMBERED = 200
#: metadata of a file that says how it was merged
_RECIPE = "loraclr.request"
_guard = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """A merge that was kept.

    Attributes:
        id: of the job that made it, or the name of a file that is not in the log
        name: of the file, without folder and extension
        date: seconds since 1970
        save_as: "lora", "full" or "checkpoint"
        checkpoint: that it was made on
        figures: concept -> share of unseen points at which it is recognised; None where nobody looked
        recipe: the request, its LoRAs by their files' names; empty where the file has it
    """

    id: str
    name: str
    date: float
    save_as: str
    checkpoint: str
    figures: dict[str, float | None]
    recipe: dict[str, Any] = field(default_factory=dict)

    def request(self) -> MergeRequest:
        """What was asked.

        Raises:
            LoraclrError: the recipe cannot be read, or the file that had it is gone
        """
        if self.recipe:
            return MergeRequest.from_dict(self.recipe)
        lora = running.find_lora(self.name)
        return read_recipe(_texts(lora), self.name)[0]


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
    return [lora for lora in running.installed_loras() if _RECIPE in lora.metadata]


def _of_files() -> Iterator[Entry]:
    for lora in merged_loras():
        texts = _texts(lora)
        try:
            request = read_recipe(texts, lora.name)[0]
            date = lora.path.stat().st_mtime
        except (LoraclrError, OSError):
            continue
        figures = dict.fromkeys(concept.label for concept in request.concepts)
        yield Entry(f"file {lora.name}", lora.name, date, request.save_as, texts.get("loraclr.checkpoint", ""), figures)


def _texts(lora: running.InstalledLora) -> dict[str, str]:
    """Its metadata as the file has them: the WebUI parses what looks like JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in lora.metadata.items()}


def _path() -> Path | None:
    """The log, beside the file with the WebUI's settings."""
    settings = getattr(shared.cmd_opts, "ui_settings_file", None)
    return Path(settings).absolute().parent / "loraclr-history.json" if settings else None


def _logged() -> list[Entry]:
    path = _path()
    try:
        return [Entry(**values) for values in json.loads(path.read_text("utf-8"))] if path else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        errors.report(f"LoRACLR: {path.name} cannot be read, and the history begins anew", exc_info=True)
        return []


def _rewrite(change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Write the log as it is after a change, whole or not at all."""
    path = _path()
    if path is None:
        return
    with _guard:
        try:
            kept = change(_logged())[-_REMEMBERED:]
            whole = path.with_suffix(".tmp")
            whole.write_text(json.dumps([asdict(entry) for entry in kept], indent=1), "utf-8")
            whole.replace(path)
        except OSError:  # the merge is kept all the same
            errors.report("LoRACLR: the history of merges could not be written", exc_info=True)
