"""A folder of tensors that were computed once, each found again by all that it was computed from.

Nothing in it is ever needed: whatever is missing is computed again, and whoever empties the folder loses time alone. What is
there is whole (`writing.replace_file`), and as a file's name is a digest of all that its content depends on, nothing that is
out of date is ever found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LoraclrError
from .tensor_files import NewTensor, read_header, tensor_bytes, write_tensors
from .writing import replace_file, require_space

#: what a folder may grow to, in MB, where nobody says
LIMIT_MB = 8192
#: of that a file takes half at most, so that what is quickly made never drives out all that took long; and so many bytes of the
#: disk stay free for whatever else is written there
_SHARE, _SPARED = 2, 1 << 30
#: names of what is kept, so that nothing else in the folder is ever touched
_NAME = "{}.loraclr.safetensors"
#: the one entry of the metadata
_SAID = "loraclr.kept"
#: rooms that nothing which is kept depends on
_BESIDE = ("doors", "output")


@dataclass(frozen=True)
class Kept:
    """What was found.

    Attributes:
        tensors: by name; mapped from the file, and read where they are used
        said: what was kept beside them, as JSON has it
    """

    tensors: Mapping[str, Tensor]
    said: Mapping[str, object]


class WorkFolder:
    """Tensors kept by content.

    Attributes:
        trouble: why nothing more is kept; empty while all is well
        too_large: bytes of the largest that was left out, as it would have taken more than half of the limit
    """

    def __init__(self, folder: Path, limit_mb: int = LIMIT_MB) -> None:
        """
        Args:
            folder: made when the first tensor is kept
            limit_mb: what it may grow to; what was used longest ago goes first

        Raises:
            LoraclrError: it is no folder, or nobody may write there
        """
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise LoraclrError(f"{folder} is no folder that can be written to: choose another work folder.")
        if limit_mb < 1:
            raise LoraclrError(f"The work folder's limit is {limit_mb} MB: give at least 1.")
        self._folder, self._limit, self.trouble, self.too_large = folder, limit_mb << 20, "", 0

    def find(self, key: str) -> Kept | None:
        """What was kept under a key, if it is still there.

        Args:
            key: from `content_key`
        """
        path = self._path(key)
        try:
            said = json.loads(read_header(path).metadata[_SAID])
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            os.utime(path)
        except (LoraclrError, SafetensorError, OSError, ValueError, KeyError):  # gone meanwhile, or not ours
            return None
        return Kept(tensors, said)

    def keep(self, key: str, tensors: Mapping[str, Tensor], said: Mapping[str, object] | None = None) -> None:
        """Keep tensors under a key, in place of what was there.

        A disk that is full ends no merge: from then on nothing is kept, and `trouble` says why.
        """
        written = [NewTensor.of(name, tensor) for name, tensor in sorted(tensors.items())]
        size = sum(tensor.size for tensor in written)
        if size > self._limit // _SHARE:
            self.too_large = max(self.too_large, size)
            return
        if self.trouble:
            return
        metadata = {_SAID: json.dumps(said or {})}
        try:
            require_space(self._path(key), size, spare=_SPARED)
            replace_file(self._path(key), lambda stream: write_tensors(stream, written, lambda _: metadata))
        except LoraclrError as error:
            self.trouble = f"Nothing more is kept in the work folder: {error}"
            return
        self._shrink(self._limit, self._path(key))

    def forget(self, key: str) -> None:
        """What was kept under a key is not needed any more."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes that are kept."""
        return sum(size for _, size, _ in self._listed())

    def empty(self) -> None:
        """Delete all that is kept; other files in the folder stay."""
        self._shrink(0, None)

    def _path(self, key: str) -> Path:
        return self._folder / _NAME.format(key)

    def _listed(self) -> list[tuple[float, int, Path]]:
        """When it was last used, its size and where it is, of all that is kept."""
        found = []
        for path in self._folder.glob(_NAME.format("*")):
            with suppress(OSError):  # another process deleted it
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        return sorted(found)

    def _shrink(self, most: int, newest: Path | None) -> None:
        """Delete what was used longest ago until there are at most so many bytes."""
        listed = self._listed()
        total = sum(size for _, size, _ in listed)
        for _, size, path in listed:
            if total <= most:
                return
            if path != newest:
                with suppress(OSError):  # Windows lets nobody delete what is in use
                    path.unlink()
                    total -= size


def content_key(*parts: object) -> str:
    """A digest of values and tensors: the same for the same content, in any process on any day.

    Args:
        parts: text, bytes, numbers, None, tensors, and sequences and mappings of them
    """
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, part: object) -> None:
    if isinstance(part, Tensor):
        _update(digest, (str(part.dtype), tuple(part.shape)))
        digest.update(tensor_bytes(part))
    elif isinstance(part, Mapping):
        _update(digest, [item for name in sorted(part) for item in (name, part[name])])
    elif isinstance(part, Sequence) and not isinstance(part, str | bytes):
        digest.update(f"[{len(part)}:".encode())
        for item in part:
            _update(digest, item)
    elif part is None or isinstance(part, str | bytes | int | float):
        # with type and length before it, so that no two values run into each other
        text = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{type(part).__name__}{len(text)}:".encode() + text)
    else:
        raise TypeError(f"{type(part).__name__} has no content that a key could be made of")


def file_key(path: Path) -> str:
    """A digest of a file, or of all files of a folder; empty where there is none."""
    digest = hashlib.sha256()
    paths = sorted(own for own in path.rglob("*") if own.is_file()) if path.is_dir() else [path]
    for own in paths:
        if own.is_file():
            state = own.stat()
            name = own.relative_to(path).as_posix() if path.is_dir() else ""
            digest.update(f"{name}:{_file_digest(own, state.st_size, state.st_mtime_ns)};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """Of a file of this size that was changed then: read once, as a checkpoint takes many seconds."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def code_key() -> str:
    """A digest of the source code that whatever is kept was computed by: after any change of it nothing of before is found."""
    library = Path(__file__).parents[1]
    sources = sorted(path for path in library.rglob("*.py") if path.relative_to(library).parts[0] not in _BESIDE)
    return content_key([(path.relative_to(library).as_posix(), path.read_bytes()) for path in sources])
