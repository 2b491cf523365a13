"""The work folder of the merges in this WebUI: what they recorded and how far they were, as far as the settings give it room."""

from __future__ import annotations

from pathlib import Path

from modules import cache

from ...errors import LoraclrError
from ...files import WorkFolder
from . import settings

#: inside the folder that the WebUI keeps its own caches in
_NAME = "loraclr-work"


def is_on() -> bool:
    """Whether merges keep anything."""
    return _limit() > 0


def opened() -> tuple[WorkFolder | None, tuple[str, ...]]:
    """The folder for one merge, and a warning where it cannot be used: the merge goes on without."""
    if not is_on():
        return None, ()
    try:
        return WorkFolder(_folder(), _limit()), ()
    except LoraclrError as error:
        return None, (
            f"If a merge is ended nothing is there to go on from: {error} It is named in Settings > LoRACLR.",
        )


def size() -> int:
    """Bytes that are kept, also where nothing more is."""
    return _anyway().size()


def empty() -> int:
    """Delete all that is kept; bytes that are still there, as another program has them open."""
    folder = _anyway()
    folder.empty()
    return folder.size()


def limit_mb() -> int:
    """What the folder may grow to."""
    return _limit()


def _anyway() -> WorkFolder:
    return WorkFolder(_folder(), max(1, _limit()))


def _limit() -> int:
    return int(settings.value("loraclr_work_limit"))


def _folder() -> Path:
    chosen = str(settings.value("loraclr_work_folder")).strip()
    return Path(chosen) if chosen else Path(cache.cache_dir) / _NAME
