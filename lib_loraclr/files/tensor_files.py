"""The `.safetensors` format: its header read without its tensors, and files written tensor by tensor.

https://github.com/huggingface/safetensors#format: eight bytes with the header's length, the header (JSON: name -> dtype, shape
and place; `__metadata__`), then the tensors' bytes, one after the other without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import LoraclrError

#: what people call the precision of a file
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
#: the format's own names
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    # since torch 2.3
    **{getattr(torch, f"uint{bits}"): f"U{bits}" for bits in (16, 32, 64) if hasattr(torch, f"uint{bits}")},
}
#: of every type that the format has: bits of a number
BITS = {
    **{f"F{bits}": bits for bits in (4, 16, 32, 64)},
    **{f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL"), 8),
    "BF16": 16,
    "C64": 64,
}
HEADER_LENGTH = struct.Struct("<Q")
#: in bytes, as the format has it
LONGEST_HEADER = 100_000_000
#: bytes that tell what a file is instead
_BEGIN = 256
#: the digest that stands in the header until all tensors are written
_UNKNOWN = "0" * 64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a file.

    Attributes:
        name: its name
        dtype: the format's name of its type ("F16")
        shape: its shape
        start, size: bytes from the first tensor's first byte on, and how many
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        name, dtype, shape: as of `StoredTensor`
        size: in bytes
        chunks: makes its bytes, in pieces, when it is its turn
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterable[bytes]]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> NewTensor:
        """A tensor that is in memory already."""
        size = tensor.numel() * tensor.element_size()
        return cls(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), size, lambda: [tensor_bytes(tensor)])


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's numbers as the format has them: row by row, little-endian."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_tensors(stream: BinaryIO, tensors: Sequence[NewTensor], metadata: Callable[[str], Mapping[str, str]]) -> None:
    """Write a whole file, one piece of one tensor at a time in memory; the same bytes for the same content.

    The `safetensors` package writes the metadata in the order of a hash map seeded anew in each process; a merge that is
    repeated must give the same bytes, so the header is written here: metadata sorted by name, tensors in the order
    given, the header padded with spaces to a multiple of 8, as that package does.

    Args:
        stream: at its beginning; it can seek if the metadata depend on the digest
        metadata: sha256 of all tensors' bytes (64 hexadecimal digits) -> the metadata
    """
    first = _header(tensors, metadata(_UNKNOWN))
    stream.write(first)
    digest = hashlib.sha256()
    for tensor in tensors:
        for chunk in tensor.chunks():
            digest.update(chunk)
            stream.write(chunk)
    final = _header(tensors, metadata(digest.hexdigest()))
    if final != first:
        stream.seek(0)
        stream.write(final)


def _header(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}} if metadata else {}
    offset = 0
    for tensor in tensors:
        place = [offset, offset + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return HEADER_LENGTH.pack(len(text)) + text


@dataclass(frozen=True)
class Header:
    """What a file says it holds.

    Attributes:
        tensors: in the order of their places
        metadata: its `__metadata__`
        data: where the first tensor begins in the file
    """

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    data: int


def read_header(path: Path) -> Header:
    """What a file says it holds, its tensors left where they are. Whatever bytes a file has, they are read or refused.

    Raises:
        LoraclrError: it cannot be opened, is not safetensors (a web page, a pointer, … are called so), or its header does not
            fit the file
    """
    try:
        with path.open("rb") as stream:
            entries, data = _entries(stream, path.stat().st_size)
        metadata = _metadata(entries.pop("__metadata__", None))
        tensors = sorted((_stored(*item) for item in entries.items()), key=lambda stored: (stored.start, stored.size))
        _require_no_gaps(tensors, path.stat().st_size - data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise unreadable(path, error) from error
    return Header(tuple(tensors), metadata, data)


def _entries(stream: BinaryIO, whole: int) -> tuple[dict[str, object], int]:
    """The header as JSON has it, and where the tensors begin.

    Args:
        whole: the file's size in bytes
    """
    (length,) = HEADER_LENGTH.unpack(stream.read(HEADER_LENGTH.size))
    if length > whole:
        raise ValueError(f"its header would have {length} bytes, and the file has {whole}")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes, and the format allows {LONGEST_HEADER}")
    entries = json.loads(stream.read(length).decode(), object_pairs_hook=_without_doubles)
    if not isinstance(entries, dict):
        raise TypeError(f"its header is {type(entries).__name__}, not an object")
    return entries, HEADER_LENGTH.size + length


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; two values of one name would leave it open which is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"its header holds {name!r} twice")
    return found


def _metadata(metadata: object) -> dict[str, str]:
    if metadata is not None and not isinstance(metadata, dict):
        raise TypeError(f"its metadata are {type(metadata).__name__}, not an object")
    texts = {name: str(value) for name, value in (metadata or {}).items()}
    for text in (*texts, *texts.values()):
        text.encode()  # half of a pair of surrogates is no text, and whoever prints it would fail
    return texts


def _stored(name: str, entry: object) -> StoredTensor:
    """A tensor's place, if its shape takes just that much room."""
    name.encode()
    if not isinstance(entry, dict):
        raise TypeError(f"{name} is {type(entry).__name__}, not an object")
    dtype, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name} is of the type {dtype!r}, which the format does not have")
    if not _are_counts(shape):
        raise ValueError(f"{name} has the shape {shape!r}")
    if not _are_counts(places) or len(places) != 2:
        raise ValueError(f"{name} has its place at {places!r}")
    size = places[1] - places[0]
    if 8 * size != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"{name} has {size} bytes, and {dtype} {shape} does not take as many")
    return StoredTensor(name, dtype, tuple(shape), places[0], size)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _require_no_gaps(tensors: Sequence[StoredTensor], size: int) -> None:
    """Raises ValueError where tensors do not stand one after the other, from the first byte to the last of `size`."""
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(f"{tensor.name} does not begin where the tensor before it ends")
        end += tensor.size
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, and {size} follow the header")


#: what files begin with that are often saved as .safetensors -> what they are, and what to do
_TAKEN_FOR_IT = (
    (
        re.compile(rb"version https://git-lfs"),
        "is a Git LFS pointer, which only names the file that is meant: fetch that with `git lfs pull`, or download it from "
        "its page.",
    ),
    (
        re.compile(rb"\s*<(?:!doctype|html|head|\?xml|!--)", re.IGNORECASE),
        "is a web page, as a site sends in place of a file that one must sign in for: sign in there, and download it again.",
    ),
    (
        re.compile(rb"\s*[\[{]\s*[\"\]}]"),
        "is a message in JSON, as a site sends in place of a file: read it in an editor, and download the file again.",
    ),
    (
        re.compile(rb"PK\x03\x04|\x80[\x02-\x05]"),
        "is a pickle or zip archive under another name: convert it to .safetensors.",
    ),
    (re.compile(rb"GGUF"), "is a GGUF file under another name: take the LoRA in the safetensors format."),
    (re.compile(rb"\Z"), "is empty: download it again."),
)


def unreadable(path: Path, error: Exception) -> LoraclrError:
    """The error for a file that is not safetensors: what it is instead, where its first bytes tell.

    Args:
        error: what reading it ended with
    """
    if isinstance(error, PermissionError):
        return LoraclrError(f"{path} may not be read: change its permissions, or copy it elsewhere.")
    try:
        with path.open("rb") as stream:
            begin = stream.read(_BEGIN)
    except (OSError, ValueError):
        return LoraclrError(f"{path} cannot be read ({error}): check the name and the folder.")
    for pattern, said in _TAKEN_FOR_IT:
        if pattern.match(begin):
            return LoraclrError(f"{path} {said}")
    why = "it is nested without end" if isinstance(error, RecursionError) else str(error)
    return LoraclrError(
        f"{path} cannot be read as safetensors ({why}): the file is damaged or incomplete, download it again."
    )
