"""The `.safetensors` format: its header read without its tensors, and files written tensor by tensor.

https://github.com/huggingface/safetensors#format: eight bytes with the header's length, the header (JSON: name -> dtype, shape
and place; `__metadata__`), then the tensors' bytes, one after the other without gaps.
"""

from __future__ import annotations

import hashlib
import json
import struct
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
HEADER_LENGTH = struct.Struct("<Q")
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
    """What a file says it holds, its tensors left where they are.

    Raises:
        LoraclrError: it cannot be read, is not safetensors, or its header does not fit the file
    """
    try:
        with path.open("rb") as stream:
            (length,) = HEADER_LENGTH.unpack(stream.read(HEADER_LENGTH.size))
            whole = path.stat().st_size
            if length > whole:
                raise ValueError(f"its header would have {length} bytes, and the file has {whole}")
            entries = json.loads(stream.read(length))
        metadata = entries.pop("__metadata__", {})
        tensors = [_stored(name, entry) for name, entry in entries.items()]
        tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
        end = 0
        for tensor in tensors:
            if tensor.start != end or tensor.size < 0:
                raise ValueError(f"{tensor.name} does not begin where the tensor before it ends")
            end += tensor.size
        data = HEADER_LENGTH.size + length
        if data + end != whole:
            raise ValueError(f"it ends at byte {whole}, its header says {data + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise LoraclrError(
            f"{path} cannot be read as safetensors ({error}): the file is damaged or incomplete, download it again."
        ) from error
    return Header(tuple(tensors), {key: str(value) for key, value in metadata.items()}, data)


def _stored(name: str, entry: Mapping) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(name, entry["dtype"], tuple(entry["shape"]), start, end - start)
