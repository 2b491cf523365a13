"""LoRA files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import write_files

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_atomically(path: Path, data: bytes, *, overwrite: bool) -> None:
    write_files({path: lambda stream: stream.write(data)}, overwrite=overwrite)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk(stream: BinaryIO) -> None:
    """A writer for whose last bytes there is no room."""
    stream.write(b"half of it")
    raise NO_SPACE


def pressing_ctrl_c(stream: BinaryIO) -> None:
    stream.write(b"half of it")
    raise KeyboardInterrupt


def failing_sync(_: int) -> None:
    raise NO_SPACE


@pytest.mark.parametrize("existing", [{}, {"x.safetensors": b"old", "x.json": b"old"}], ids=["new", "existing"])
@pytest.mark.parametrize("failing", ["x.safetensors", "x.json"])
def test_a_full_disk_leaves_every_file_as_it_was(tmp_path: Path, failing: str, existing: dict[str, bytes]) -> None:
    for name, content in existing.items():
        (tmp_path / name).write_bytes(content)
    writers = {tmp_path / name: lambda stream: stream.write(b"new") for name in ("x.safetensors", "x.json")}
    writers[tmp_path / failing] = full_disk
    with pytest.raises(
        LoraclrError, match=rf"{failing} cannot be written \(No space left on device\): free some space"
    ):
        write_files(writers, overwrite=True)
    assert listing(tmp_path) == existing


def test_a_disk_that_fails_when_it_is_told_to_store_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing_sync)
    with pytest.raises(LoraclrError, match="No space left on device"):
        write_atomically(tmp_path / "x.safetensors", b"all of it", overwrite=False)
    assert listing(tmp_path) == {}


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "x.safetensors": pressing_ctrl_c}, overwrite=False)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("failing", ["x.safetensors", "x.json"])
def test_files_that_belong_together_are_all_moved_in_place_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """On Windows a file that another program holds open cannot be replaced."""
    replace = Path.replace

    def held_open(source: Path, target: Path) -> Path:
        if target.name == failing:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", held_open)
    writers = {tmp_path / name: lambda stream: stream.write(b"new") for name in ("x.safetensors", "x.json")}
    with pytest.raises(LoraclrError, match=rf"{failing} cannot be written \(Permission denied\)"):
        write_files(writers, overwrite=False)
    assert listing(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(LoraclrError, match=r"taken.x\.safetensors cannot be written \(.*\): .* choose another folder"):
        write_atomically(tmp_path / "taken" / "x.safetensors", b"new", overwrite=False)
    assert listing(tmp_path) == {"taken": b"a file"}


def test_a_file_that_exists_is_replaced_only_if_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(
        LoraclrError, match=r"x\.safetensors exists already: choose another name, or allow .*--overwrite"
    ):
        write_atomically(path, b"new", overwrite=False)
    assert listing(tmp_path) == {"x.safetensors": b"old"}
    write_atomically(path, b"new", overwrite=True)
    assert listing(tmp_path) == {"x.safetensors": b"new"}


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(LoraclrError, match="exists already"):
        write_files({path: lambda stream: path.write_bytes(b"someone else's")}, overwrite=False)
    assert listing(tmp_path) == {"x.safetensors": b"someone else's"}


def test_a_half_written_file_is_hidden_in_the_same_folder_and_no_lora_by_name(tmp_path: Path) -> None:
    """In the same folder, since only there a move replaces the file at once; the WebUI lists every `.safetensors`."""
    seen: list[str] = []
    write_files(
        {tmp_path / "x.safetensors": lambda stream: seen.extend(path.name for path in tmp_path.iterdir())},
        overwrite=False,
    )
    assert len(seen) == 1
    assert seen[0].startswith(".")
    assert not seen[0].endswith(".safetensors")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "x.safetensors", b"new", overwrite=False)
    assert listing(tmp_path) == {str(Path("a", "b", "x.safetensors")): b"new"}


@pytest.mark.skipif(os.name == "nt", reason="permission bits are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_a_file_gets_the_permissions_that_any_new_file_would(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "x.safetensors", b"new", overwrite=False)
        assert os.umask(mask) == mask, "the process's own mask was changed"
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode
