"""Files as Windows has them, played on another system: what is open or mapped cannot be moved, replaced or deleted, a name that
is taken is never given again by a rename, there is an end to a path, and links cannot be counted on.

Windows itself is not among the systems that this was run on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files import work_folder, writing
from lib_loraclr.files.work_folder import WorkFolder
from lib_loraclr.files.writing import Written, replace_file, write_files
from lib_loraclr.refining.state import StateKeeper

OLD = {"x.safetensors": b"old", "x.json": b"old card", "x.png": b"old picture"}
NEW = {"x.safetensors": b"new", "x.json": b"new card"}


class Windows:
    """What it minds.

    Attributes:
        held: files that a program has open -> how often it is asked before that ends
        waited: seconds that were waited in all
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.held: dict[Path, float] = {}
        self.waited = 0.0
        self._rename, self._replace, self._unlink, self._open = os.rename, os.replace, os.unlink, Path.open
        for name in ("rename", "replace", "unlink"):
            patch.setattr(os, name, getattr(self, name))
        patch.setattr(os, "link", self._no_links)
        patch.setattr(Path, "open", lambda path, *how, **more: self.open(path, *how, **more))
        patch.setattr(writing, "_WINDOWS", True)
        patch.setattr(writing.time, "sleep", self._sleep)

    def hold(self, path: Path, asked: float = float("inf")) -> None:
        self.held[path] = asked

    def rename(self, source: Any, target: Any, **_: Any) -> None:
        self._require_free(source)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists")
        self._rename(source, target)

    def replace(self, source: Any, target: Any, **_: Any) -> None:
        self._require_free(source, target)
        self._replace(source, target)

    def unlink(self, path: Any, **_: Any) -> None:
        self._require_free(path)
        self._unlink(path)

    def open(self, path: Path, *how: Any, **more: Any) -> Any:
        if len(str(path)) > 259:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self._open(path, *how, **more)

    def _require_free(self, *paths: Any) -> None:
        for path in map(Path, paths):
            self.held[path] = self.held.get(path, 0) - 1
            if self.held[path] >= 0:
                raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")

    def _no_links(self, *_: Any) -> None:
        raise AssertionError("links are not counted on there")

    def _sleep(self, seconds: float) -> None:
        self.waited += seconds


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    return Windows(monkeypatch)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in listing(folder).items() if not name.startswith(".")}


def writers_of(folder: Path) -> dict[Path, Callable[[BinaryIO], object]]:
    return {folder / name: lambda stream, name=name: stream.write(NEW[name]) for name in NEW}


def replace_old(folder: Path) -> Written:
    """Writes NEW where OLD stands."""
    for name, content in OLD.items():
        (folder / name).write_bytes(content)
    return write_files(writers_of(folder), overwrite=True, stale=[folder / name for name in OLD])


def test_files_are_written_replaced_and_put_back(windows: Windows, tmp_path: Path) -> None:
    written = replace_old(tmp_path)
    assert visible(tmp_path) == NEW
    written.put_back()
    assert listing(tmp_path) == OLD and windows.waited == 0


@pytest.mark.parametrize("name", OLD)
def test_a_file_that_is_in_use_ends_a_replacement_with_everything_as_it_was(
    windows: Windows, tmp_path: Path, name: str
) -> None:
    windows.hold(tmp_path / name)
    with pytest.raises(LoraclrError, match=r"cannot be written \(The process .* in use: .*close what uses it"):
        replace_old(tmp_path)
    assert listing(tmp_path) == OLD and 0 < windows.waited < 2


@pytest.mark.parametrize("name", NEW)
def test_a_file_that_is_in_use_is_not_put_back_over(windows: Windows, tmp_path: Path, name: str) -> None:
    written = replace_old(tmp_path)
    before = listing(tmp_path)
    windows.hold(tmp_path / name)
    with pytest.raises(LoraclrError, match="cannot be put back"):
        written.put_back()
    assert listing(tmp_path) == before
    windows.held.clear()
    written.put_back()
    assert listing(tmp_path) == OLD


def test_a_program_that_looks_through_new_files_is_waited_for(windows: Windows, tmp_path: Path) -> None:
    for name in OLD:
        windows.hold(tmp_path / name, asked=3)
    replace_old(tmp_path)
    assert visible(tmp_path) == NEW and windows.waited > 0


def test_what_was_replaced_and_is_in_use_stays_hidden_until_it_is_swept(windows: Windows, tmp_path: Path) -> None:
    written = replace_old(tmp_path)
    aside = written.replaced[tmp_path / "x.safetensors"]
    windows.hold(aside)
    written.forget()
    assert listing(tmp_path) == {**NEW, aside.name: b"old"}
    windows.held.clear()
    old = aside.with_name(aside.name.replace(aside.name.split(".")[-2][:8], "00000001"))
    aside.rename(old)
    write_files({tmp_path / "y.safetensors": lambda stream: stream.write(b"y")}, overwrite=False)
    assert listing(tmp_path) == {**NEW, "y.safetensors": b"y"}


def test_a_name_that_is_taken_in_the_last_moment_is_not_replaced(windows: Windows, tmp_path: Path) -> None:
    def somebody_was_faster(stream: BinaryIO) -> None:
        stream.write(b"new card")
        (tmp_path / "x.json").write_bytes(b"somebody else's")

    writers = {**writers_of(tmp_path), tmp_path / "x.json": somebody_was_faster}
    with pytest.raises(LoraclrError, match=r"x\.json exists already"):
        write_files(writers, overwrite=False)
    assert listing(tmp_path) == {"x.json": b"somebody else's"}


def test_a_path_that_is_too_long_there_is_called_so(windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * (235 - len(str(tmp_path)))}.safetensors"
    assert len(str(path)) < 259, "of itself it is short enough: the hidden name beside it is not"
    with pytest.raises(LoraclrError, match="the name is too long there: choose a shorter one"):
        write_files({path: lambda stream: stream.write(b"new")}, overwrite=False)
    assert listing(tmp_path) == {}
    with pytest.raises(LoraclrError, match="free some space"):  # the control: what else is not found is not called so
        raise writing._cannot(tmp_path / "x", FileNotFoundError(errno.ENOENT, "No such file"), "written")


def test_a_file_that_somebody_reads_is_not_replaced_and_is_whole(windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(b"old")
    windows.hold(path)
    with pytest.raises(LoraclrError, match="close what uses it"):
        replace_file(path, lambda stream: stream.write(b"new"))
    assert listing(tmp_path) == {"log.json": b"old"}
    windows.hold(path, asked=2)
    replace_file(path, lambda stream: stream.write(b"new"))
    assert listing(tmp_path) == {"log.json": b"new"}


def test_a_work_folder_whose_files_are_mapped_keeps_on(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found is mapped for as long as its tensors live; a state that was gone on from is replaced by the next one."""
    mapped: list[torch.Tensor] = []

    class Mapped:
        """A file, and its tensors, which are counted."""

        def __init__(self, *given: Any, **named: Any) -> None:
            self._file = open_file(*given, **named)

        def __enter__(self) -> Mapped:
            self._file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.__exit__(*error)

        def keys(self) -> list[str]:
            return self._file.keys()

        def get_tensor(self, name: str) -> torch.Tensor:
            mapped.append(self._file.get_tensor(name))
            return mapped[-1]

    open_file = work_folder.safe_open
    monkeypatch.setattr(work_folder, "safe_open", Mapped)
    folder = WorkFolder(tmp_path / "work")
    keeper = StateKeeper(folder, "state")
    keeper.keep(lambda: ({"x": torch.ones(2)}, {"made": 1}), now=True)
    found = keeper.find()
    assert found.said == {"made": 1} and torch.equal(found.tensors["x"], torch.ones(2))
    assert mapped[0].data_ptr() != found.tensors["x"].data_ptr(), "nothing of the file is held on to"
    folder.keep("other", {"y": torch.zeros(2)})
    windows.hold(folder._path("other"))
    folder.forget("other")
    folder.empty()
    assert folder.find("other") is not None and not folder.trouble, "what is in use stays, and ends nothing"
