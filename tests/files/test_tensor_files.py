"""The safetensors format: what is read agrees with the package, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.tensor_files import DTYPE_NAMES, NewTensor, read_header, write_tensors


def test_a_header_places_tensors_where_the_package_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {f"t{i}": torch.ones(i, 3).to(dtype) for i, dtype in enumerate(DTYPE_NAMES, 1)}
    save_file(tensors, path, {"title": "a file"})
    header, content = read_header(path), path.read_bytes()
    assert header.metadata == {"title": "a file"} and {t.name for t in header.tensors} == set(tensors)
    for stored in header.tensors:
        tensor = tensors[stored.name]
        assert (stored.shape, stored.dtype) == (tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])
        start = header.data + stored.start
        assert content[start : start + stored.size] == tensor.view(torch.uint8).numpy().tobytes()
    assert [t.start for t in header.tensors] == sorted(t.start for t in header.tensors)


def test_a_digest_in_the_metadata_is_that_of_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    given = [NewTensor.of("b", torch.arange(5.0)), NewTensor.of("a", torch.ones(2, 2).half())]
    with path.open("wb") as stream:
        write_tensors(stream, given, lambda digest: {"hash": digest, "a": "ä"})
    assert torch.equal(load_file(path)["b"], torch.arange(5.0))
    header = read_header(path)
    assert len(header.metadata["hash"]) == 64 and set(header.metadata["hash"]) != {"0"}
    assert [tensor.name for tensor in header.tensors] == ["b", "a"], "in the order given"
    assert header.data % 8 == 0


def entry(start: int, end: int) -> dict:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


DAMAGED = {
    "a short length": b"1234",
    "a length beyond the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"html",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a gap": {"a": entry(0, 2), "b": entry(4, 8)},
    "an overlap": {"a": entry(0, 4), "b": entry(2, 8)},
    "a negative size": {"a": {"dtype": "U8", "shape": [1], "data_offsets": [8, 0]}},
    "too few bytes": {"a": entry(0, 9)},
    "too many bytes": {"a": entry(0, 7)},
    "no dtype": {"a": {"shape": [8], "data_offsets": [0, 8]}},
    "no places": {"a": {"dtype": "U8", "shape": [8]}},
    "a number": {"a": 8},
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes | dict) -> None:
    path = tmp_path / "file.safetensors"
    if isinstance(content, dict):
        text = json.dumps(content).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(8)
    path.write_bytes(content)
    with pytest.raises(LoraclrError, match=r"file\.safetensors cannot be read as safetensors .*: the file is damaged"):
        read_header(path)


def test_the_undamaged_form_is_read(tmp_path: Path) -> None:
    """The control of the test above."""
    text = json.dumps({"a": entry(0, 4), "b": entry(4, 8)}).encode()
    (tmp_path / "file.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert [tensor.start for tensor in read_header(tmp_path / "file.safetensors").tensors] == [0, 4]
