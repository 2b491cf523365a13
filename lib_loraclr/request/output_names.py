"""Names of the files that a merge becomes; a name never leads out of its folder."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import LoraclrError

# Windows reads superscript digits as digits here, and blanks before the dot as nothing
_RESERVED = re.compile(
    r"^(con|prn|aux|nul|conin\$|conout\$|clock\$|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3]) *(\..*)?$",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*\\]')
#: of a name's part: file systems take 255, and temporary files and reports have longer names than the LoRA
MOST_BYTES = 200
#: with its sub-folders: a path of some systems has 1024, and there is a folder before it
MOST_BYTES_IN_ALL = 600


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
        if any(map(_is_invisible, part)):
            raise LoraclrError(f"{problem} has characters that nobody sees: write it anew.")
        if len(part.encode()) > MOST_BYTES:
            raise LoraclrError(f"{problem} is too long: give one of at most {MOST_BYTES} bytes.")
    path = folder / f"{stem}.safetensors"
    if len(stem.encode()) > MOST_BYTES_IN_ALL:
        raise LoraclrError(
            f"{problem} is too long with its sub-folders: give one of at most {MOST_BYTES_IN_ALL} bytes."
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LoraclrError(f"{problem} leads outside {folder} through a link: choose another sub-folder.")
    return path


def clean_name(name: str) -> str:
    """A name that `output_path` takes, as near to `name` as can be."""
    visible = "".join("_" if _is_invisible(letter) else letter for letter in name)
    return _FORBIDDEN.sub("_", visible).replace("/", "_").strip(" .") or "merge"


def _is_invisible(letter: str) -> bool:
    """Control and format characters (one of them writes a name backwards), halves of pairs, and what is no character."""
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
