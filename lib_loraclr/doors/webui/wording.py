"""Messages of the core as the WebUI shows them: names in place of paths, and nothing of the command line.

Whoever sees the tab or asks over HTTP may be somebody else than who owns the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...errors import LoraclrError
from ...hosts import running
from ...model import is_out_of_memory

_NO_MEMORY = (
    "The graphics memory ran out, and nothing was kept: choose effort Layers, merge fewer LoRAs at a time, or record smaller "
    "pictures (width and height under Advanced)."
)
_NO_RAM = (
    "The computer's memory ran out, and nothing was kept: close other programs, lower the memory budget under Advanced, or merge "
    "fewer LoRAs at a time."
)
_PHRASES = {
    "allow overwriting it (--overwrite)": "replace it",
    " (trigger=…)": "",
    " (kind=style)": " (its kind)",
}
_FLAG = re.compile(r" \(--[a-z][a-z-]*\)")
#: folders of an absolute path, all but the last name
_FOLDERS = re.compile(r"(?<![\w/\\.:<~])(?:[A-Za-z]:[/\\]|\\\\|/)(?:[^\s/\\'\"(),:;<>]+[/\\])*(?=[^\s/\\'\"(),:;<>])")


def plain(text: str, names: Mapping[str, str] | None = None) -> str:
    """A message without folders of this computer and without flags.

    Args:
        names: path -> what the WebUI calls it
    """
    for path, name in sorted((names or {}).items(), key=lambda item: -len(item[0])):
        text = text.replace(path, name)
    for folder, called in _folders().items():
        text = re.sub(rf"{re.escape(folder)}[/\\](?=\S)", "", text)
        text = text.replace(folder, called)
    for phrase, instead in _PHRASES.items():
        text = text.replace(phrase, instead)
    # half of a character would end the answer over HTTP in which it stands
    return _FOLDERS.sub("", _FLAG.sub("", text)).encode(errors="replace").decode()


def _folders() -> dict[str, str]:
    """Folders that files go to, the longest first -> what a person calls them; as they are given and as they are."""
    found: dict[str, str] = {}
    with suppress(LoraclrError, AttributeError):  # the WebUI has not set them yet
        for folder, called in (
            (running.checkpoint_dir(), "the checkpoint folder"),
            (running.lora_dir(), "the LoRA folder"),
        ):
            found |= {str(path): called for path in (folder, folder.absolute(), Path(folder).resolve())}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def reworded(error: LoraclrError, names: Mapping[str, str] | None = None) -> LoraclrError:
    """The error, of the same kind, with its text as `plain` has it."""
    return type(error)(plain(str(error), names))


def of_memory(error: BaseException) -> str:
    """What to say where memory ran out; empty where something else went wrong."""
    if is_out_of_memory(error):
        return _NO_MEMORY
    ram = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    return _NO_RAM if ram else ""
