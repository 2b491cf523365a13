"""Headers that nobody's program writes, and files that are something else: refused by name, whatever their bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_family import family_by_header
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.files.tensor_files import BITS, LONGEST_HEADER, read_header


def with_header(text: str | bytes, data: bytes = bytes(16)) -> bytes:
    header = text.encode() if isinstance(text, str) else text
    return len(header).to_bytes(8, "little") + header + data


def entry(**changes: object) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]} | changes})


#: what is wrong -> a file that has it, and what is said of it
HOSTILE = {
    "a negative side": (with_header(entry(shape=[-1, 4])), r"a has the shape \[-1, 4\]"),
    "two negative sides": (with_header(entry(shape=[-1, -4])), r"a has the shape \[-1, -4\]"),
    "a huge side": (with_header(entry(shape=[2**70])), "a has 16 bytes, and F32 .* does not take as many"),
    "a huge and no side": (with_header(entry(shape=[2**70, 0])), "does not take as many"),
    "a side that is text": (with_header(entry(shape=["a"])), r"a has the shape \['a'\]"),
    "a side that is true": (with_header(entry(shape=[True, 4])), r"a has the shape \[True, 4\]"),
    "a broken side": (with_header(entry(shape=[1.0, 4])), r"a has the shape \[1.0, 4\]"),
    "a shape that is text": (with_header(entry(shape="14")), "a has the shape '14'"),
    "a shape that is none": (with_header(entry(shape=None)), "a has the shape None"),
    "places before the data": (with_header(entry(data_offsets=[-16, 0])), r"a has its place at \[-16, 0\]"),
    "places that are text": (with_header(entry(data_offsets=["0", "16"])), "a has its place at"),
    "three places": (with_header(entry(data_offsets=[0, 8, 16])), "a has its place at"),
    "a type of no format": (with_header(entry(dtype="F99")), "type 'F99', which the format does not have"),
    "a type that is a list": (with_header(entry(dtype=["F32"])), "which the format does not have"),
    "a shape of other size": (with_header(entry(shape=[1, 5])), r"a has 16 bytes, and F32 \[1, 5\] does not take"),
    "nesting without end": (with_header('{"a":' + "[" * 200_000), "nested without end"),
    "a number without end": (with_header('{"a": ' + "9" * 5000 + "}"), "cannot be read as safetensors"),
    "one name twice": (with_header('{"a": 1, "b": 2, "a": 3}'), "holds 'a' twice"),
    "metadata that are a list": (with_header('{"__metadata__": ["x"]}', b""), "metadata are list, not an object"),
    "metadata that are text": (with_header('{"__metadata__": "x"}', b""), "metadata are str, not an object"),
    "a name that is no text": (with_header(entry().replace('"a"', '"\\ud800"')), "cannot be read as safetensors"),
    "metadata that are no text": (
        with_header('{"__metadata__": {"x": "\\udfff"}}', b""),
        "cannot be read as safetensors",
    ),
    "another encoding": (with_header(entry().encode("utf-16")), "cannot be read as safetensors"),
    "a tensor that is text": (with_header('{"a": "b"}'), "a is str, not an object"),
    "two at one place": (
        with_header(json.dumps({name: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for name in "ab"})),
        "b does not begin where the tensor before it ends",
    ),
    "a hole and an overlap": (
        with_header(
            json.dumps({n: {"dtype": "U8", "shape": [8], "data_offsets": [i, i + 8]} for n, i in (("a", 0), ("b", 4))})
        ),
        "b does not begin where the tensor before it ends",
    ),
    "bytes after the end": (with_header(entry(), bytes(17)), "its tensors take 16 bytes, and 17 follow"),
}
#: files that are no LoRA -> their first bytes, and what they are called
OTHERS = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 151000000\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "page": (b"<!DOCTYPE html><html><head><title>Sign in</title>", "web page.*sign in there"),
    "page with blanks": (b"\n  <html lang='en'>", "web page"),
    "answer": (b'{"error":"Unauthorized","message":"log in"}', "message in JSON.*download the file again"),
    "list": (b'[ "not found" ]', "message in JSON"),
    "zip": (b"PK\x03\x04archive/data.pkl", "pickle or zip archive"),
    "pickle": (b"\x80\x02}q\x00.", "pickle or zip archive"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "GGUF file"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize(("content", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_with_what_is_wrong_in_it(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    for read in (read_header, family_by_header, read_lora):
        with pytest.raises(LoraclrError, match=said) as refused:
            read(path)
        assert str(path) in str(refused.value) and str(refused.value).endswith("download it again.")


def test_the_same_header_is_read_where_nothing_is_wrong(tmp_path: Path) -> None:
    """The control of the test above."""
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_header(entry()))
    assert [(stored.shape, stored.size) for stored in read_header(path).tensors] == [((1, 4), 16)]


@pytest.mark.parametrize(("content", "said"), OTHERS.values(), ids=OTHERS)
def test_a_file_that_is_something_else_is_called_by_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    for read in (read_header, read_lora):
        with pytest.raises(LoraclrError, match=said) as refused:
            read(path)
        assert "damaged" not in str(refused.value)


def test_a_header_longer_than_the_format_allows_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with path.open("wb") as stream:  # a file of holes, which takes no room on the disk
        stream.write((LONGEST_HEADER + 1).to_bytes(8, "little") + b"{}")
        stream.truncate(LONGEST_HEADER + 100)
    with pytest.raises(LoraclrError, match=f"{LONGEST_HEADER + 1} bytes, and the format allows {LONGEST_HEADER}"):
        read_header(path)


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """A real file with some of its bytes changed; what the package reads is read, with the same shapes."""
    rng, whole = random.Random(0), save({"a.b": torch.ones(3, 2), "c": torch.ones(2).half()}, {"title": "x"})
    path, outcomes = tmp_path / "file.safetensors", {True: 0, False: 0}
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            shapes = {stored.name: list(stored.shape) for stored in read_header(path).tensors}
        except LoraclrError:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        try:
            with safe_open(str(path), framework="pt") as opened:
                assert shapes == {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            assert "InvalidTensorView" in str(error) or "metadata" in str(error).lower(), (
                "only what the package dislikes"
            )
    assert min(outcomes.values()) > 20, "both happen"


def test_the_formats_types_are_those_of_the_package() -> None:
    """Of those that torch has; their sizes are torch's."""
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool):
        name = json.loads(save({"a": torch.zeros(2, dtype=dtype)})[8:].partition(b"}}")[0] + b"}}")["a"]["dtype"]
        assert BITS[name] == 8 * dtype.itemsize


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64"])
def test_a_type_that_few_know_is_read_or_refused(tmp_path: Path, dtype: str) -> None:
    path, numbers = tmp_path / "file.safetensors", 128 // BITS[dtype]
    bits = numbers * BITS[dtype]
    text = json.dumps({"lora_unet_x.diff": {"dtype": dtype, "shape": [1, numbers], "data_offsets": [0, bits // 8]}})
    path.write_bytes(with_header(text, bytes(bits // 8)))
    try:
        assert read_lora(path).layers
    except LoraclrError as error:
        assert str(path) in str(error)
