"""Names of the files that a merge becomes; a name never leads out of its folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import LoraclrError

_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*\\]')
#: of a name's part: file systems take 255, and temporary files and reports have longer names than the LoRA
MOST_BYTES = 200


def output_path(folder: Path, name: str) -> Path:
    """Where a merge called `name` goes inside `folder`; sub-folders are allowed, leaving the folder is not.

    Args:
        name: with or without `.safetensors`, parts separated by "/"

    Raises:
        LoraclrError: the name leaves the folder, has characters that file systems or prompts reserve, or is empty
    """
    stem = name[: -len(".safetensors")] if name.lower().endswith(".safetensors") else name
    problem = f"The output name {name!r}"
    if PureWindowsPath(stem).is_absolute() or PureWindowsPath(stem).drive or PurePosixPath(stem).is_absolute():
        raise LoraclrError(f"{problem} is a path of its own: give a name inside {folder}.")
    for part in stem.split("/"):
        if part in ("", ".", ".."):
            raise LoraclrError(f"{problem} leaves {folder} or has an empty part: give a name like my-merge.")
        if _FORBIDDEN.search(part) or _RESERVED.match(part) or part != part.strip() or part.endswith("."):
            raise LoraclrError(
                f"{problem} has characters that file names or prompts reserve: use letters, digits, - and _."
            )
        if len(part.encode()) > MOST_BYTES:
            raise LoraclrError(f"{problem} is too long: give one of at most {MOST_BYTES} bytes.")
    path = folder / f"{stem}.safetensors"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LoraclrError(f"{problem} leads outside {folder} through a link: choose another sub-folder.")
    return path


def clean_name(name: str) -> str:
    """A name that `output_path` takes, as near to `name` as can be."""
    return _FORBIDDEN.sub("_", name).replace("/", "_").strip(" .") or "merge"
