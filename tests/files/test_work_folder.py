"""Tensors kept by what they were computed from."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files import work_folder
from lib_loraclr.files.work_folder import Kept, WorkFolder, code_key, content_key, file_key

MEGABYTE = 1 << 20


def half_a_megabyte(value: int) -> dict[str, torch.Tensor]:
    return {"x": torch.full((MEGABYTE // 2,), value, dtype=torch.uint8)}


def age(folder: Path, key: str, seconds: float) -> None:
    """As if it had been used last so long ago."""
    path = folder / f"{key}.loraclr.safetensors"
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_what_is_kept_is_found_by_another_process_s_folder(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor([True, False]), "c": torch.randn(2).half()}
    said = {"steps": 7, "losses": [0.1, 1e-300, float("nan")], "nested": {"a": None}}
    WorkFolder(tmp_path / "new").keep("key", tensors, said)
    found = WorkFolder(tmp_path / "new").find("key")
    assert isinstance(found, Kept) and set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert found.said["losses"][:2] == [0.1, 1e-300] and found.said["nested"] == {"a": None}
    assert WorkFolder(tmp_path / "new").find("another") is None


def test_what_is_mapped_stays_what_it_was_when_the_file_is_replaced_or_deleted(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    folder.keep("key", {"a": torch.ones(5)})
    before = folder.find("key").tensors["a"]
    folder.keep("key", {"a": torch.zeros(5)})
    after = folder.find("key").tensors["a"]
    folder.empty()
    assert folder.find("key") is None
    assert before.tolist() == [1.0] * 5 and after.tolist() == [0.0] * 5


def test_the_oldest_go_first_and_what_was_used_is_young(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path, limit_mb=2)
    for seconds, key in ((300, "a"), (200, "b"), (100, "c")):
        folder.keep(key, half_a_megabyte(1))
        age(tmp_path, key, seconds)
    assert folder.find("a"), "found, and used just now"
    folder.keep("d", half_a_megabyte(2))
    assert [key for key in "abcd" if folder.find(key)] == ["a", "c", "d"]
    assert folder.size() <= 2 * MEGABYTE


def test_what_is_larger_than_the_limit_is_not_kept_and_drives_nothing_out(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path, limit_mb=1)
    folder.keep("small", half_a_megabyte(1))
    assert not folder.too_large
    folder.keep("large", {"x": torch.zeros(MEGABYTE // 2 + 1, dtype=torch.uint8)})
    assert folder.find("small") and not folder.find("large"), "half of the limit is for one file"
    assert folder.too_large == MEGABYTE // 2 + 1 and not folder.trouble


def test_a_disk_that_is_nearly_full_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spare, kept in ((1, True), (0, False)):
        free = (1 << 30) + 20 - (1 - spare)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        folder = WorkFolder(tmp_path / "new")
        folder.keep("key", {"a": torch.ones(5)})
        assert bool(folder.find("key")) is kept
        folder.empty()
    assert "has 1.00 GB left, 1.00 of which are for others: free some space" in folder.trouble


def test_other_files_in_the_folder_are_never_touched(tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"mine")
    folder = WorkFolder(tmp_path, limit_mb=1)
    folder.keep("key", half_a_megabyte(1))
    folder.forget("mine")
    folder.empty()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"{}" + data[2:]])
def test_a_damaged_file_is_not_found(tmp_path: Path, damage) -> None:
    folder = WorkFolder(tmp_path)
    folder.keep("key", {"a": torch.ones(5)})
    path = tmp_path / "key.loraclr.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert folder.find("key") is None


def test_a_full_disk_ends_nothing_is_said_once_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = WorkFolder(tmp_path)
    folder.keep("key", {"a": torch.ones(5)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        folder.keep("key", {"a": torch.zeros(5)})
    assert "Nothing more is kept in the work folder" in folder.trouble and "free some space" in folder.trouble
    assert folder.find("key").tensors["a"].tolist() == [1.0] * 5
    folder.keep("other", {"a": torch.ones(5)})
    assert folder.find("other") is None
    assert len(list(tmp_path.iterdir())) == 1, "nothing half written is left"


def test_what_is_no_work_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoraclrError, match=r"file is no folder that can be written to: choose another work folder"):
        WorkFolder(tmp_path / "file")
    with pytest.raises(LoraclrError, match=r"limit is 0 MB: give at least 1"):
        WorkFolder(tmp_path, 0)


DIFFERENT = (
    *("1", 1, 1.0, True, b"1", None, (), [[]], {}, ["1"], ["1", ""], [["1"], ""], ["11"], ["1", "1"], "1, 1"),
    *(torch.ones(2), torch.ones(2, 1), torch.ones(1, 2), torch.ones(2).half(), torch.ones(2, dtype=torch.int32)),
    *({"a": 1}, {"b": 1}, {"a": {"b": 1}}, {"a": [1]}, {"a": 1, "b": None}),
)


def test_keys_differ_where_anything_differs_and_are_the_same_for_the_same() -> None:
    keys = [content_key(part) for part in DIFFERENT]
    alike = {keys.index(key) for key in keys if keys.count(key) > 1}
    # an empty list and an empty mapping are the one pair that is the same: nothing tells them apart, and nothing has to
    assert {repr(DIFFERENT[place]) for place in alike} <= {"()"}
    assert content_key({"a": 1, "b": (2, 3)}) == content_key({"b": [2, 3], "a": 1})
    assert content_key(1, 2) != content_key(12) and content_key(1, 2) == content_key(1, 2)
    assert content_key(torch.arange(6).view(2, 3).mT) == content_key(torch.arange(6).view(2, 3).mT.contiguous())
    with pytest.raises(TypeError, match="object has no content"):
        content_key(object())


def test_a_file_s_key_is_that_of_its_content(tmp_path: Path) -> None:
    def folder(name: str, files: Mapping[str, bytes]) -> Path:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / name

    one, same = folder("one", {"a": b"1", "sub/b": b"2"}), folder("same", {"sub/b": b"2", "a": b"1"})
    assert file_key(one) == file_key(same)
    others = [folder("moved", {"b": b"1", "sub/b": b"2"}), folder("changed", {"a": b"1", "sub/b": b"3"})]
    assert len({file_key(path) for path in (one, *others, one / "a", tmp_path / "none")}) == 5


def test_the_key_of_the_code_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "doors").mkdir()
    monkeypatch.setattr(work_folder, "__file__", str(tmp_path / "files" / "work_folder.py"))
    (tmp_path / "files" / "a.py").write_text("1")
    (tmp_path / "doors" / "b.py").write_text("1")
    before = code_key()
    (tmp_path / "doors" / "b.py").write_text("2")
    assert code_key() == before, "no door is any part of what is kept"
    (tmp_path / "files" / "a.py").write_text("2")
    assert code_key() != before
