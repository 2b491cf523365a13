"""LoRA files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files import writing
from lib_loraclr.files.writing import Written, write_files

ROOT = Path(__file__).parents[2]
#: the module by itself: the face of its room imports torch, which takes longer than all that is tried here
WITHOUT_TORCH = """
import importlib.util, sys, types
sys.path.insert(0, ".")
package = types.ModuleType("lib_loraclr.files")
package.__path__ = ["lib_loraclr/files"]
sys.modules["lib_loraclr.files"] = package
"""
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_atomically(path: Path, data: bytes, *, overwrite: bool) -> None:
    write_files({path: lambda stream: stream.write(data)}, overwrite=overwrite).forget()


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


def test_a_disk_that_can_only_be_read_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(
        LoraclrError, match=r"x\.safetensors cannot be written \(Read-only file system\): .* read: choose"
    ):
        write_atomically(tmp_path / "a" / "x.safetensors", b"new", overwrite=False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LoraclrError, match=r"x\.safetensors cannot be written .*: .* change its permissions"):
            write_atomically(tmp_path / "x.safetensors", b"new", overwrite=False)
    finally:
        tmp_path.chmod(0o700)
    assert listing(tmp_path) == {}


# What is replaced


OLD = {"x.safetensors": b"old", "x.json": b"old card", "x.png": b"old picture", "x.preview.jpg": b"another"}
NEW = {"x.safetensors": b"new", "x.json": b"new card"}


def replace_old(folder: Path) -> Written:
    """Writes NEW where OLD stands, with all that belongs to OLD."""
    for name, content in OLD.items():
        (folder / name).write_bytes(content)
    writers = {folder / name: lambda stream, name=name: stream.write(NEW[name]) for name in NEW}
    return write_files(writers, overwrite=True, stale=[folder / name for name in OLD])


def visible(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in listing(folder).items() if not name.startswith(".")}


def test_what_is_replaced_is_kept_and_put_back_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    written = replace_old(tmp_path)
    assert visible(tmp_path) == NEW, "the old pictures are not beside the new file"
    kept = set(listing(tmp_path)) - set(NEW)
    assert len(kept) == len(OLD) and all(name.startswith(".x.") and name.endswith(".replaced") for name in kept)
    written.put_back()
    assert listing(tmp_path) == OLD
    with pytest.raises(LoraclrError, match="What .* replaced is not there any more|was changed since"):
        written.put_back()
    assert listing(tmp_path) == OLD


def test_what_is_let_go_of_is_gone(tmp_path: Path) -> None:
    written = replace_old(tmp_path)
    written.forget()
    assert listing(tmp_path) == NEW
    with pytest.raises(LoraclrError, match="replaced is not there any more"):
        written.put_back()
    assert listing(tmp_path) == NEW


def test_a_file_that_was_changed_since_is_not_put_back_over(tmp_path: Path) -> None:
    written = replace_old(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"somebody trained on")
    with pytest.raises(LoraclrError, match=r"x\.safetensors was changed since it was written: move it away"):
        written.put_back()
    assert visible(tmp_path) == {**NEW, "x.safetensors": b"somebody trained on"}


def test_a_card_that_was_edited_since_goes_with_its_file(tmp_path: Path) -> None:
    written = replace_old(tmp_path)
    (tmp_path / "x.json").write_bytes(b"edited")
    written.put_back()
    assert listing(tmp_path) == OLD


class FailsAt:
    """Renames and links, of which the n-th fails."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        self.count, self.number = 0, number
        rename, link = Path.rename, os.link
        patch.setattr(Path, "rename", lambda source, target: self._call(rename, source, target))
        patch.setattr(os, "link", lambda source, target: self._call(link, source, target))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.count += 1
        if self.count == self.number:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return function(*arguments)


@pytest.mark.parametrize("number", range(1, 6))
def test_all_are_replaced_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """On Windows a file that another program holds open can be neither moved nor replaced. A place is no link on such a disk,
    so that the fifth operation falls back to one that succeeds."""
    (tmp_path / "control").mkdir()
    with monkeypatch.context() as patch:
        counted = FailsAt(patch, 0)
        replace_old(tmp_path / "control")
    assert counted.count == 6, "four are set aside, and two are placed"
    (tmp_path / "here").mkdir()
    with monkeypatch.context() as patch:
        FailsAt(patch, number)
        if number <= 4:
            with pytest.raises(
                LoraclrError, match=r"x\.\w+(\.jpg)? cannot be written \(Permission denied\): .*close what"
            ):
                replace_old(tmp_path / "here")
        else:
            replace_old(tmp_path / "here").put_back()
    assert listing(tmp_path / "here") == OLD


@pytest.mark.parametrize("number", range(1, 11))
def test_all_are_put_back_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    written = replace_old(tmp_path)
    before = listing(tmp_path)
    with monkeypatch.context() as patch:
        FailsAt(patch, number)
        patch.setattr(writing, "_WINDOWS", True)
        patch.setattr(writing, "_PATIENCE", ())  # nothing is tried a second time
        try:
            written.put_back()
        except LoraclrError as error:
            assert "cannot be put back (Permission denied)" in str(error)
            assert number <= 6 and listing(tmp_path) == before
        else:
            assert number > 6 and listing(tmp_path) == OLD


def test_a_name_that_is_taken_in_the_last_moment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a check and a replacement there would be time for it."""
    link = os.link

    def somebody_was_faster(source: Path, target: Path) -> None:
        if Path(target).name == "x.json":
            Path(target).write_bytes(b"somebody else's")
        link(source, target)

    monkeypatch.setattr(os, "link", somebody_was_faster)
    writers = {tmp_path / name: lambda stream, name=name: stream.write(NEW[name]) for name in NEW}
    with pytest.raises(LoraclrError, match=r"x\.json exists already"):
        write_files(writers, overwrite=False)
    assert listing(tmp_path) == {"x.json": b"somebody else's"}


def test_a_disk_without_links_holds_the_name_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    write_atomically(tmp_path / "x.safetensors", b"new", overwrite=False)
    assert listing(tmp_path) == {"x.safetensors": b"new"}
    with pytest.raises(LoraclrError, match="exists already"):
        write_files({tmp_path / "x.safetensors": lambda stream: None}, overwrite=False)
    replace_old(tmp_path).put_back()
    assert listing(tmp_path) == OLD


def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "precious.safetensors"
    target.write_bytes(b"precious")
    link = tmp_path / "x.safetensors"
    try:
        link.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")
    written = write_files({link: lambda stream: stream.write(b"new")}, overwrite=True)
    assert (link.read_bytes(), link.is_symlink(), target.read_bytes()) == (b"new", False, b"precious")
    written.put_back()
    assert link.is_symlink() and link.read_bytes() == b"precious"


def test_what_a_process_left_that_was_ended_by_force_is_removed_after_a_day(tmp_path: Path) -> None:
    long_ago, now = f"{int(time.time()) - 90_000:08x}", f"{int(time.time()):08x}"
    left = [f".x.safetensors.{long_ago}-00000000.tmp", f".y.json.{long_ago}-00000000.replaced"]
    others = [f".x.safetensors.{now}-00000000.tmp", ".mine.tmp", "x.tmp", f"x.{long_ago}-00000000.tmp", ".a.replaced"]
    for name in (*left, *others):
        (tmp_path / name).write_bytes(b"")
    write_atomically(tmp_path / "x.safetensors", b"new", overwrite=False)
    assert set(listing(tmp_path)) == {*others, "x.safetensors"}


# A process that is ended by force


CHILD = """
import json, os, sys, pathlib
from lib_loraclr.files.writing import write_files
folder = pathlib.Path(sys.argv[1])
number, in_place = int(sys.argv[2]), len(sys.argv) > 3
print("ready", flush=True)
while True:
    number += 1
    content = f"{number} ".encode() * 20_000
    pieces = [content[i : i + 4096] for i in range(0, len(content), 4096)]
    names = ["x.safetensors", "x.json"] + (["x.png"] if number % 3 else [])
    stale = [folder / name for name in ("x.png", "x.json", "x.preview.jpg")]
    writers = {folder / name: lambda stream: stream.writelines(pieces) for name in names}
    if in_place:
        for path, write in writers.items():
            with path.open("wb") as stream:
                write(stream)
        continue
    written = write_files(writers, overwrite=True, stale=stale)
    written.put_back() if number % 5 == 0 and written.replaced else written.forget()
"""


def numbers_in(path: Path) -> set[bytes]:
    """What a file holds; one number, as often as it was written, if it is whole."""
    words = path.read_bytes().split()
    assert len(words) == 20_000 and len(set(words)) == 1, f"{path.name} is half of a file"
    return set(words)


def killed_while_writing(folder: Path, first: int, seconds: float, *more: str) -> set[str]:
    """The files that are there, each of them whole and all of one merge."""
    command = [sys.executable, "-S", "-c", WITHOUT_TORCH + CHILD, str(folder), str(first), *more]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n"
        select.select([], [], [], seconds)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    seen = {path.name: numbers_in(path) for path in folder.iterdir() if not path.name.startswith(".")}
    assert len(set().union(*seen.values())) <= 1, "a card or picture stands beside another file"
    assert "x.safetensors" in seen or not seen, "a card or picture stands alone"
    return set(seen)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("seed", range(10))
def test_a_process_that_is_killed_leaves_whole_files_that_belong_together(tmp_path: Path, seed: int) -> None:
    """A hundred times in all, each at another moment: the old file, the new one or none; its card and picture, or none."""
    rng = random.Random(seed)
    states = [killed_while_writing(tmp_path, 1000 * kill, rng.uniform(0.0, 0.05)) for kill in range(10)]
    assert any(states), "control: something was written"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_process_that_writes_in_place_would_be_caught(tmp_path: Path) -> None:
    """The control of the test above."""
    rng = random.Random(0)
    with pytest.raises(AssertionError, match="half of a file|beside another file"):
        for kill in range(50):
            killed_while_writing(tmp_path, 1000 * kill, rng.uniform(0.0, 0.05), "in place")
