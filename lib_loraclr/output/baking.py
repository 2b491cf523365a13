"""A merge added to a copy of its checkpoint, row by row: the model is never in memory, and the file never half-written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import LoraclrError
from ..files import DTYPE_NAMES, DTYPES, NewTensor, StoredTensor, read_header, require_safetensors, tensor_bytes
from ..model import INPAINTING_CHANNELS, LATENT_CHANNELS, MEGABYTE, Factors
from ..recording import InputLora
from .checkpoint_layers import Place, find_places

_DTYPES = {DTYPE_NAMES[dtype]: dtype for dtype in DTYPES.values()}
#: bytes that a number of a weight takes while it is changed, besides its own twice: as fp32, and the product added to it
_WORKING = 2 * 4
#: larger pieces are not copied faster
_COPIED_AT_ONCE = 16 * MEGABYTE


def require_copyable(checkpoint: Path) -> None:
    """Refuse a checkpoint that a merge cannot be baked into, before the merge is made.

    Raises:
        LoraclrError: a folder, a pickle, or no file
    """
    if checkpoint.is_dir():
        raise LoraclrError(
            f"{checkpoint} is a diffusers folder: a merge is baked into a checkpoint in the single-file format."
        )
    require_safetensors(checkpoint)


def require_places(checkpoint: Path, inputs: Iterable[InputLora]) -> None:
    """Refuse a checkpoint that lacks a layer which a merge will change, or keeps one too coarsely, before the merge is made.

    Raises:
        LoraclrError: as `BakedCheckpoint`
    """
    tensors = read_header(checkpoint).tensors
    for given in inputs:
        places = find_places(tensors, given.deltas)
        for key, factors in given.deltas.items():
            _checked(places.get(key), key, factors, checkpoint)


class BakedCheckpoint:
    """The tensors of a checkpoint with a merge added. `W + up @ down` is summed in fp32 and rounded once, to the type that the
    checkpoint has for this tensor; all else is copied bit for bit.

    Attributes:
        tensors: the file's, in the checkpoint's own order and layout
        metadata: the checkpoint's own
    """

    def __init__(self, checkpoint: Path, deltas: Mapping[str, Factors], memory_mb: int) -> None:
        """
        Args:
            checkpoint: a single `.safetensors` file in the compvis layout; only its header is read now
            deltas: layer key -> factors, fp32
            memory_mb: what may be held of the checkpoint at once

        Raises:
            LoraclrError: it cannot be read, does not hold a layer that the merge changes, or keeps it in another shape or
                a type too coarse
        """
        require_copyable(checkpoint)
        header = read_header(checkpoint)
        self.metadata = header.metadata
        self._checkpoint, self._data, self._budget = checkpoint, header.data, memory_mb * MEGABYTE
        places = find_places(header.tensors, deltas)
        self._changes: dict[str, list[tuple[Place, str, Factors]]] = {}
        for key, factors in deltas.items():
            place = _checked(places.get(key), key, factors, checkpoint)
            self._changes.setdefault(place.tensor.name, []).append((place, key, factors))
        self.tensors = [self._new(tensor) for tensor in header.tensors]

    @property
    def size(self) -> int:
        """Of the file in bytes, without its header."""
        return sum(tensor.size for tensor in self.tensors)

    def _new(self, tensor: StoredTensor) -> NewTensor:
        chunks = self._changed if tensor.name in self._changes else self._copied
        return NewTensor(tensor.name, tensor.dtype, tensor.shape, tensor.size, lambda: chunks(tensor))

    def _copied(self, tensor: StoredTensor) -> Iterator[bytes]:
        with self._checkpoint.open("rb") as stream:
            stream.seek(self._data + tensor.start)
            left = tensor.size
            while left:
                piece = _read(stream, min(left, _COPIED_AT_ONCE, self._budget))
                left -= len(piece)
                yield piece

    def _changed(self, tensor: StoredTensor) -> Iterator[bytes]:
        """The tensor's rows, as many at once as the budget allows, with the deltas of the layers that lie in them."""
        dtype, count = _DTYPES[tensor.dtype], tensor.shape[0]
        row_size = tensor.size // count
        columns = row_size // dtype.itemsize
        at_once = max(1, self._budget // (columns * (_WORKING + 2 * dtype.itemsize)))
        with self._checkpoint.open("rb") as stream:
            stream.seek(self._data + tensor.start)
            for first in range(0, count, at_once):
                rows = min(at_once, count - first)
                piece = bytearray(_read(stream, rows * row_size))
                weight = torch.frombuffer(piece, dtype=dtype).view(rows, columns).float()
                for place, key, factors in self._changes[tensor.name]:
                    low, high = max(first, place.first), min(first + rows, place.first + place.rows)
                    if low < high:
                        up = factors.up[low - place.first : high - place.first]
                        # of an inpainting checkpoint's first convolution the channels that are latents come first
                        part = weight[low - first : high - first, : factors.shape[1]]
                        part.addmm_(up.float(), factors.down.float())
                        _check_finite(weight.to(dtype), key, tensor.dtype)
                yield tensor_bytes(weight.to(dtype))


def _checked(place: Place | None, key: str, factors: Factors, checkpoint: Path) -> Place:
    if place is None:
        raise LoraclrError(
            f"{checkpoint} holds no tensor for the layer {key}: bake the merge into the checkpoint that it was made on, "
            "in the single-file format."
        )
    tensor = place.tensor
    if tensor.dtype not in _DTYPES:
        raise LoraclrError(
            f"{checkpoint} keeps {tensor.name} as {tensor.dtype}, too coarse to add a merge to: "
            f"use a copy of the checkpoint in {', '.join(DTYPES)}."
        )
    columns = tensor.size // _DTYPES[tensor.dtype].itemsize // tensor.shape[0]
    if tensor.shape[1:2] == (INPAINTING_CHANNELS,) and len(tensor.shape) == 4:
        columns = columns // INPAINTING_CHANNELS * LATENT_CHANNELS
    if (place.rows, columns) != factors.shape:
        raise LoraclrError(
            f"{checkpoint} has {key} as {[place.rows, columns]}, the merge as {list(factors.shape)}: "
            "bake it into the checkpoint that it was made on."
        )
    return place


def _check_finite(weight: torch.Tensor, key: str, dtype: str) -> None:
    if not weight.isfinite().all():
        raise LoraclrError(f"The merged {key} does not fit into {dtype}: use a copy of the checkpoint in bf16 or fp32.")


def _read(stream: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes.

    Raises:
        OSError: the file has become shorter
    """
    piece = stream.read(size)
    if len(piece) < size:
        raise OSError(f"{stream.name} ended early")
    return piece
