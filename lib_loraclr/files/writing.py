"""Files that belong together, written whole or not at all, and what they replace kept until it is let go.

Whatever ends the process at whatever moment, a file under its own name is whole, and what stands beside it (card, picture) is
its own: everything is written under another name first; what is replaced is set aside, the files beside the main one before it;
then the new ones get their names, the main one first. A name is given by an operation that fails where it is taken, so that
nothing is lost that somebody else put there meanwhile.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import LoraclrError

#: `.NAME.<when, hexadecimal seconds>-<random>.tmp` is being written, `….replaced` was set aside; hidden, and no LoRA by its end
_OURS = re.compile(r"\..+\.([0-9a-f]{8,})-[0-9a-f]{8}\.(tmp|replaced)\Z")
#: seconds after which what a process left that was ended by force is removed
_STALE = 24 * 60 * 60
#: Windows lets nobody move or delete what another program has open, as those do for a moment that look through new files:
#: seconds to wait before each further try
_WINDOWS, _PATIENCE = os.name == "nt", (0.05, 0.1, 0.2, 0.4)
#: characters of a path that Windows takes, unless it was told to take more
_WINDOWS_PATH = 259
#: what is wrong with a disk -> what to do about it
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    getattr(errno, "EDQUOT", -1): "free some space or choose another folder",
    errno.EACCES: "the folder or file is protected or in use: change its permissions, close what uses it, or go elsewhere",
    errno.EPERM: "the folder or file is protected: change its permissions or choose another folder",
    errno.EROFS: "the disk can only be read: choose another folder",
    errno.ENAMETOOLONG: "the name is too long there: choose a shorter one",
}


@dataclass(frozen=True)
class Written:
    """Files that were written, and what they replaced.

    Attributes:
        paths: the new files, the main one first
        replaced: where it was -> where it is set aside now
    """

    paths: tuple[Path, ...]
    replaced: Mapping[Path, Path]
    _stamps: Mapping[Path, tuple[int, int]]

    def forget(self) -> None:
        """Delete what was replaced; there is no going back any more."""
        for aside in self.replaced.values():
            with suppress(OSError):  # somebody deleted it, or holds it open
                aside.unlink(missing_ok=True)

    def put_back(self) -> None:
        """Delete the new files, and give those that they replaced their names again: all of them or none.

        Raises:
            LoraclrError: the main file was changed since, what it replaced is gone, or a file cannot be moved
        """
        main = self.paths[0]
        if main.exists() and _stamp(main) != self._stamps[main]:
            raise LoraclrError(f"{main} was changed since it was written: move it away, and put back then.")
        lost = next((aside for aside in self.replaced.values() if not aside.exists()), None)
        if lost or not self.replaced:
            raise LoraclrError(f"What {main} replaced is not there any more: it was deleted, or there was none.")
        self.undo()

    def undo(self) -> None:
        """The same, whether anything was replaced or not.

        Raises:
            LoraclrError: a file cannot be moved
        """
        moving = _Moving()
        try:
            # what stands beside the main file goes first
            for path in (*self.paths[1:], *self.replaced, self.paths[0]):
                moving.set_aside(path)
            for path, aside in self._main_first():
                moving.place(aside, path)
        except BaseException as error:
            moving.undo()
            if isinstance(error, OSError):
                raise _cannot(self.paths[0], error, "put back") from error
            raise
        moving.forget()

    def _main_first(self) -> list[tuple[Path, Path]]:
        return sorted(self.replaced.items(), key=lambda item: item[0] != self.paths[0])


def write_files(
    writers: Mapping[Path, Callable[[BinaryIO], object]], *, overwrite: bool, stale: Iterable[Path] = ()
) -> Written:
    """Write several files that belong together: all of them, or everything stays as it was.

    Args:
        writers: path -> function that writes the file's content to the binary stream it is given; the main file first
        stale: files that belong to what is replaced and would belong to nothing after it; set aside with it

    Returns:
        what was written, with what it replaced; the caller lets go of that, or puts it back

    Raises:
        LoraclrError: one of them exists and `overwrite` is False, or cannot be written (disk full, no permission)
    """
    for path in writers:
        refuse_existing(path, overwrite=overwrite)
    main, *others = writers
    path, temporary, moving = main, {}, _Moving()
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = _another_name(path, "tmp")
            with temporary[path].open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        if overwrite:
            # what stands beside the main file goes first, so that it is never seen beside another
            for path in dict.fromkeys((*others, *stale, main)):
                moving.set_aside(path)
        for path, source in temporary.items():
            moving.place(source, path)
    except BaseException as error:
        moving.undo()
        for left in temporary.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)
        if isinstance(error, FileExistsError) and path.exists():
            refuse_existing(path, overwrite=False)
        if isinstance(error, OSError):
            raise _cannot(path, error, "written") from error
        raise
    _sweep({path.parent for path in writers})
    return Written(tuple(writers), moving.aside, {path: _stamp(path) for path in writers})


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that a program keeps for itself: at any moment the old one is there or the new one, whole.

    What it replaces is gone, and whoever has it open still has it.

    Args:
        write: writes the content to the binary stream it is given

    Raises:
        LoraclrError: it cannot be written (disk full, no permission)
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _another_name(path, "tmp")
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        _patiently(lambda: temporary.replace(path))
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot(path, error, "written") from error
        raise
    _sweep({path.parent})


class _Moving:
    """Files given other names, each of which can be taken back.

    Attributes:
        aside: where a file was -> where it is now
    """

    def __init__(self) -> None:
        self.aside: dict[Path, Path] = {}
        self._placed: list[tuple[Path, Path]] = []

    def set_aside(self, path: Path) -> None:
        """Out of the way, if it is there; once."""
        if path not in self.aside and os.path.lexists(path):
            aside = _another_name(path, "replaced")
            _patiently(lambda: path.rename(aside))
            self.aside[path] = aside

    def place(self, source: Path, path: Path) -> None:
        """Give a file its name.

        Raises:
            OSError: FileExistsError where the name is taken
        """
        _rename_exclusively(source, path)
        self._placed.append((source, path))

    def undo(self) -> None:
        """As it was; as far as that can be done, where even that fails."""
        for source, path in reversed(self._placed):
            with suppress(OSError):
                _patiently(lambda path=path, source=source: path.rename(source))
        for path, aside in reversed(self.aside.items()):
            with suppress(OSError):
                if not os.path.lexists(path):
                    _patiently(lambda path=path, aside=aside: aside.rename(path))

    def forget(self) -> None:
        for aside in self.aside.values():
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def _rename_exclusively(source: Path, path: Path) -> None:
    """Rename, unless the name is taken; a check before it would leave a moment between the two."""
    if _WINDOWS:
        _patiently(lambda: source.rename(path))  # fails where the name is taken
        return
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except (
        OSError
    ):  # no links on this disk (FAT, some networks): hold the name with an empty file, which is exact as well
        path.open("xb").close()
        try:
            source.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    else:
        source.unlink()


def _patiently(move: Callable[[], object]) -> None:
    """Move or delete a file, again and again for a moment where another program has it open and the system minds that.

    Raises:
        OSError: it cannot be done
    """
    for pause in _PATIENCE if _WINDOWS else ():
        try:
            move()
            return
        except PermissionError:
            time.sleep(pause)
    move()


def _another_name(path: Path, end: str) -> Path:
    """A hidden name in the same folder, since only there a file is moved at once."""
    return path.with_name(f".{path.name}.{int(time.time()):08x}-{secrets.token_hex(4)}.{end}")


def _sweep(folders: Iterable[Path]) -> None:
    """Remove what processes left here that were ended by force long ago."""
    for folder in folders:
        with suppress(OSError):
            for path in folder.iterdir():
                match = _OURS.match(path.name)
                if match and int(match[1], 16) < time.time() - _STALE:
                    path.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _cannot(path: Path, error: OSError, done: str) -> LoraclrError:
    reason, number = error.strerror or str(error), error.errno
    # Windows says that there is no such file
    if _WINDOWS and number == errno.ENOENT and len(str(_another_name(path, "replaced").absolute())) > _WINDOWS_PATH:
        number = errno.ENAMETOOLONG
    remedy = _REMEDIES.get(number, "free some space or choose another folder")
    return LoraclrError(f"{path} cannot be {done} ({reason}): {remedy}.")


def require_space(path: Path, size: int, *, spare: int = 0) -> None:
    """Refuse to begin a file that the disk has no room for.

    Args:
        size: in bytes
        spare: bytes that are left to others

    Raises:
        LoraclrError: there is less left where `path` would be
    """
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(nearest).free
    if free < size + spare:
        others = f", {spare / 2**30:.2f} of which are for others" if spare else ""
        raise LoraclrError(
            f"{path} would take {size / 2**30:.2f} GB, and {nearest} has {free / 2**30:.2f} GB left{others}: "
            "free some space or choose another folder."
        )


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to write over a file.

    Raises:
        LoraclrError: `path` exists and may not be overwritten
    """
    if path.exists() and not overwrite:
        raise LoraclrError(f"{path} exists already: choose another name, or allow overwriting it (--overwrite).")
