"""LoRA files: the bytes that are written, and the files that are refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import read_lora, read_tensors, serialize, with_hashes
from lib_loraclr.files.writing import write_files

TENSORS = {"a": torch.tensor([1.0, -2.0]).half(), "b": torch.tensor(0.5)}
METADATA = {"zoo": "1", "author": "é"}
#: the widest type first, though "a" comes before "b"; metadata sorted; the header padded to a multiple of 8
GOLDEN = (
    struct.pack("<Q", 152)
    + b'{"__metadata__":{"author":"\xc3\xa9","zoo":"1"},'
    + b'"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
    + b'"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}'
    + b" " * 5
    + bytes.fromhex("0000003f" + "003c" + "00c0")
)

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    *(getattr(torch, name) for name in ("uint16", "uint32", "uint64") if hasattr(torch, name)),
)

Corruption = Callable[[bytes], bytes]


def save_lora(path: Path, tensors: dict, metadata: dict[str, str], *, overwrite: bool) -> None:
    blob = serialize(tensors, with_hashes(tensors, metadata))
    write_files({path: lambda stream: stream.write(blob)}, overwrite=overwrite)


def with_header(change: Callable[[dict], object]) -> Corruption:
    """A corruption that changes the header and leaves the tensors' bytes as they are."""

    def corrupt(blob: bytes) -> bytes:
        (length,) = struct.unpack("<Q", blob[:8])
        header = json.loads(blob[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + blob[8 + length :]

    return corrupt


def entry(**changes: object) -> Corruption:
    """A corruption that changes what the header says of one tensor."""
    return with_header(lambda header: header["lora_unet_conv_in.lora_up.weight"].update(changes))


DAMAGES: dict[str, Corruption] = {
    "empty": lambda blob: b"",
    "shorter than the length of its header": lambda blob: blob[:7],
    "cut within its header": lambda blob: blob[:100],
    "cut within its tensors": lambda blob: blob[: len(blob) // 2],
    "one byte short": lambda blob: blob[:-1],
    "one byte too long": lambda blob: blob + b"\0",
    "a header of 2^60 bytes": lambda blob: struct.pack("<Q", 1 << 60) + blob[8:],
    "a header longer than the file": lambda blob: struct.pack("<Q", len(blob)) + blob[8:],
    "a header that is no JSON": lambda blob: blob.replace(b'"dtype"', b'"dtype:', 1),
    "a header that is no text": lambda blob: blob.replace(b'"dtype"', b'"\xff\xfe\xfd\xfc\xfb"', 1),
    "a shape larger than its bytes": entry(shape=[1 << 40, 1 << 40]),
    "a shape smaller than its bytes": entry(shape=[1, 1]),
    "offsets beyond the end": entry(data_offsets=[0, 1 << 40]),
    "offsets backwards": entry(data_offsets=[8, 0]),
    "an unknown type": entry(dtype="F7"),
    "a pickle in disguise": lambda blob: pickle.dumps({"x": 1}),
    "a web page": lambda blob: b"<!DOCTYPE html><title>404 Not Found</title>",
}


@pytest.fixture
def lora(tmp_path: Path, write_lora: Callable[..., Path]) -> Path:
    return write_lora(tmp_path / "fox.safetensors")


# Writing


def test_the_bytes_of_a_file_are_fixed() -> None:
    assert serialize(TENSORS, METADATA) == GOLDEN


def test_the_order_in_which_tensors_and_metadata_come_changes_no_byte() -> None:
    assert serialize(dict(reversed(TENSORS.items())), dict(reversed(METADATA.items()))) == GOLDEN


@pytest.mark.parametrize("metadata", [METADATA, {"quote": 'a "b" \\ \n \x1f 猫'}, {}], ids=["golden", "odd", "none"])
def test_the_safetensors_package_reads_what_is_written(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(serialize(TENSORS, metadata))
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == metadata
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_any_type_that_a_file_can_hold_is_written(dtype: torch.dtype) -> None:
    """Bundled embeddings are passed through in whatever type they came."""
    tensor = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(dtype)
    read = safetensors.torch.load(serialize({"x": tensor}, {}))["x"]
    assert read.dtype == dtype
    assert torch.equal(read.float(), tensor.float())


def test_tensors_that_are_not_contiguous_scalar_or_empty_are_written_right() -> None:
    tensors = {"turned": torch.arange(6.0).reshape(2, 3).T, "scalar": torch.tensor(3.0), "empty": torch.empty(0, 2)}
    read = safetensors.torch.load(serialize(tensors, {}))
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)


# Hashes, after kohya's library/train_util.py: addnet_hash_safetensors, addnet_hash_legacy,
# precalculate_safetensors_hashes


def kohya_model_hash(stream: BinaryIO) -> str:
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    stream.seek(8 + length)
    return hashlib.sha256(stream.read()).hexdigest()


def kohya_legacy_hash(stream: BinaryIO) -> str:
    stream.seek(0x100000)
    return hashlib.sha256(stream.read(0x10000)).hexdigest()[0:8]


def test_hashes_are_kohyas_over_the_packages_own_bytes() -> None:
    # more than the first 0x110000 bytes, so that the older hash has something to read
    tensors = {"a": torch.randn(300_000), "b": torch.randn(100_000).half(), "c": torch.tensor(4.0).half()}
    trained = {"ss_network_dim": "8", "ss_output_name": "fox"}
    stream = BytesIO(safetensors.torch.save(tensors, trained))
    hashed = with_hashes(tensors, {**trained, "modelspec.title": "not hashed"})
    assert hashed["sshs_model_hash"] == kohya_model_hash(stream)
    assert hashed["sshs_legacy_hash"] == kohya_legacy_hash(stream)


def test_hashes_of_another_file_are_replaced_and_all_else_is_kept() -> None:
    stale = {**METADATA, "sshs_model_hash": "copied", "sshs_legacy_hash": "copied"}
    hashed = with_hashes(TENSORS, stale)
    assert hashed == {**with_hashes(TENSORS, METADATA)}
    assert "copied" not in hashed.values()
    assert METADATA.items() <= hashed.items()


def test_a_file_is_known_by_the_hash_it_carries(tmp_path: Path, lora: Path) -> None:
    tensors, _ = read_tensors(lora)
    saved = tmp_path / "saved.safetensors"
    save_lora(saved, tensors, METADATA, overwrite=False)
    file = read_lora(saved)
    assert file.hash == file.metadata["sshs_model_hash"]


def test_the_hash_depends_on_the_tensors_and_not_on_the_metadata(tmp_path: Path, lora: Path) -> None:
    tensors, _ = read_tensors(lora)
    changed = {key: tensor + 1 for key, tensor in tensors.items()}
    (tmp_path / "same.safetensors").write_bytes(serialize(tensors, METADATA))
    (tmp_path / "other.safetensors").write_bytes(serialize(changed, METADATA))
    assert read_lora(tmp_path / "same.safetensors").hash == read_lora(lora).hash
    assert read_lora(tmp_path / "other.safetensors").hash != read_lora(lora).hash


# Reading


def test_a_parameter_that_is_there_in_two_styles_is_read_once_and_the_other_listed(
    tmp_path: Path, write_lora: Callable[..., Path]
) -> None:
    path = write_lora(
        tmp_path / "twice.safetensors",
        {"lora_unet_conv_in": (4, 4)},
        extra={"unet.conv_in.lora_up.weight": torch.ones(4, 2)},
    )
    file = read_lora(path)
    assert len(file.layers["lora_unet_conv_in"]) == 3 and len(file.unknown) == 1


def test_every_key_of_a_file_is_a_layer_an_embedding_or_unknown(lora: Path, write_lora: Callable[..., Path]) -> None:
    odd = {"bundle_emb.sks.clip_l": torch.randn(2, 8), "something.else": torch.zeros(1)}
    write_lora(lora, {"lora_unet_conv_in": (64, 4, 3, 3)}, extra=odd, metadata={"ss_v2": "False"})
    file = read_lora(lora)
    assert set(file.layers) == {"lora_unet_conv_in"}
    assert set(file.layers["lora_unet_conv_in"]) == {"lora_up.weight", "lora_down.weight", "alpha"}
    assert set(file.embeddings) == {"bundle_emb.sks.clip_l"}
    assert file.unknown == ("something.else",)
    assert (file.name, file.metadata) == ("fox", {"ss_v2": "False"})


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_refused_by_name_with_the_remedy(lora: Path, damage: Corruption) -> None:
    lora.write_bytes(damage(lora.read_bytes()))
    # what a file is instead is said in tests/test_hostile_headers.py
    with pytest.raises(LoraclrError, match="(?s)fox.safetensors (cannot be read as safetensors|is) .*: .*"):
        read_lora(lora)


@pytest.mark.parametrize("extension", [".pt", ".ckpt", ".bin", ".pth", ".PT"])
def test_a_pickle_is_refused_with_the_reason_and_never_run(tmp_path: Path, extension: str) -> None:
    marker = tmp_path / "it ran"
    path = tmp_path / f"fox{extension}"
    path.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(LoraclrError, match=r"fox\.\w+ is a pickle .* can run any program .*: convert it to \.safetens"):
        read_lora(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the trap itself does not work, so the test shows nothing"


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["fox.zip", "fox"])
def test_another_extension_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoraclrError, match=f"{name} is not a .safetensors file: name a LoRA in the safetensors format"):
        read_lora(tmp_path / name)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("gone.safetensors", "folder.safetensors"):
        with pytest.raises(LoraclrError, match=f"There is no file .*{name}: check the name and the folder"):
            read_lora(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("key", ["lora_unet_conv_in.alpha", "bundle_emb.sks.clip_l"])
def test_a_single_number_that_is_not_finite_is_refused_with_its_key(
    lora: Path, write_lora: Callable[..., Path], key: str, dtype: torch.dtype, value: float
) -> None:
    tensors, _ = read_tensors(lora)
    tensors[key] = torch.tensor([1.0, value, 1.0]).to(dtype)
    write_lora(lora, {}, extra=tensors)
    with pytest.raises(
        LoraclrError, match=f"fox.safetensors holds NaN or infinity in {key}: .* (use an earlier epoch|leave it out)"
    ):
        read_lora(lora)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64], ids=str)
def test_a_lora_of_a_rare_precision_is_read_and_checked(
    lora: Path, write_lora: Callable[..., Path], dtype: torch.dtype
) -> None:
    def write(up: Tensor) -> None:
        down = torch.ones(2, 4)
        layer = {"lora_unet_x.lora_up.weight": up.to(dtype), "lora_unet_x.lora_down.weight": down.to(dtype)}
        write_lora(lora, {}, extra=layer)

    write(torch.ones(4, 2))
    assert read_lora(lora).layers["lora_unet_x"]["lora_up.weight"].dtype == dtype
    write(torch.full((4, 2), float("nan")))
    with pytest.raises(LoraclrError, match="NaN or infinity in lora_unet_x.lora_up.weight"):
        read_lora(lora)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_embedding_of_any_precision_is_read_as_it_can_be_written(
    lora: Path, write_lora: Callable[..., Path], dtype: torch.dtype
) -> None:
    write_lora(lora, {"lora_unet_x": (4, 3)}, extra={"bundle_emb.sks.clip_l": torch.ones(2, 3).to(dtype)})
    embeddings = read_lora(lora).embeddings
    blob = serialize(embeddings, {})
    assert safetensors.torch.load(blob)["bundle_emb.sks.clip_l"].dtype == dtype


def test_an_embedding_that_could_not_be_written_is_refused_when_it_is_read(
    lora: Path, write_lora: Callable[..., Path]
) -> None:
    write_lora(lora, {"lora_unet_x": (4, 3)}, extra={"bundle_emb.sks.clip_l": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(LoraclrError, match=r"fox.*sks\.clip_l as torch\.complex64, .*: .*take the embedding out of it"):
        read_lora(lora)


def test_a_file_without_layers_is_refused_with_some_of_its_keys(lora: Path, write_lora: Callable[..., Path]) -> None:
    write_lora(lora, {}, extra={"model.x": torch.zeros(1)})
    with pytest.raises(LoraclrError, match=r"fox.safetensors holds no LoRA layer \(its keys: model\.x\)"):
        read_lora(lora)
    lora.write_bytes(serialize({}, METADATA))
    with pytest.raises(LoraclrError, match="holds no LoRA layer .*none at all"):
        read_lora(lora)
