"""Merges of several people at once: one after the other, each seen, kept and stopped by its owner alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_webui_jobs import files, job
from webui_doors import Doors, doors  # noqa: F401  (a fixture)

from lib_loraclr.errors import LoraclrError


def wait_until(reached: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.02)
    assert reached()


def owned(doors: Doors, owner: str) -> Any:  # noqa: F811
    made = job(doors, "fox", "penguin")
    made.owner = owner
    return made


def finished(doors: Doors, owner: str = "") -> Any:  # noqa: F811
    made = owned(doors, owner)
    doors.module("jobs").run(made, lock_held=False)
    return made


# Owners


@pytest.mark.parametrize(
    ("task", "owner"),
    [("task(ab12-xyz)", "ab12"), ("task(xyz)", ""), ("", ""), ("task(-x)", ""), ("task(a-b-c)", ""), ("ab-c", "")],
)
def test_a_task_names_the_page_it_belongs_to(doors: Doors, task: str, owner: str) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    assert jobs.owner_of(task) == owner
    made = job(doors, "fox")
    assert jobs.Job(made.request, made.names, task=task).owner == owner


def test_a_result_waits_for_its_owner_and_is_found_by_nobody_else(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    mine, other = finished(doors, "me"), finished(doors, "you")
    assert jobs.waiting("me") is mine and jobs.waiting("you") is other and jobs.waiting() is None
    assert jobs.find(mine.id, "me") is mine and jobs.find(mine.id, "you") is None


def test_nobody_s_result_is_driven_out_by_others(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    mine, *others = [finished(doors, owner) for owner in ("me", "you", "you", "you", "he")]
    assert [made.state for made in (mine, *others)] == ["finished", "discarded", "finished", "finished", "finished"]
    assert others[0].result is None and others[0].error == "Newer results took its place: nobody had kept it."
    many = [finished(doors, f"owner {i}") for i in range(jobs._HELD_IN_ALL)]
    assert mine.state == "discarded" and all(made.state == "finished" for made in many), "memory ends somewhere"


# The queue


def test_merges_that_are_asked_for_at_once_wait_for_each_other(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    two = [owned(doors, owner) for owner in ("me", "you")]
    with doors.webui.call_queue.queue_lock:  # a picture is being made
        for made in two:
            jobs.start(made)
        assert [made.state for made in two] == ["queued", "queued"]
    wait_until(lambda: all(made.state in jobs.OVER for made in two))
    assert [made.state for made in two] == ["finished", "finished"] and not doors.reported
    assert [jobs.waiting(owner) for owner in ("me", "you")] == two, "each sees their own"
    assert all(made.fraction() == 1.0 for made in two)


def test_the_queue_has_an_end_for_one_and_for_all(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    with doors.webui.call_queue.queue_lock:
        begun = [owned(doors, "me") for _ in range(jobs._WAITING)]
        for made in begun:
            jobs.start(made)
        with pytest.raises(
            LoraclrError,
            match=rf"^{jobs._WAITING} merges are waiting already: wait for one of them, or interrupt it\.$",
        ):
            jobs.start(owned(doors, "me"))
        begun.append(owned(doors, "you"))
        jobs.start(begun[-1])
        for made in begun:
            jobs.interrupt(made)
        begun.append(owned(doors, "me"))
        jobs.start(begun[-1])  # those that do not begin any more have made way
        jobs.interrupt(begun[-1])
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("loraclr ")])
    assert {made.state for made in begun} == {"interrupted"}


def test_a_task_that_is_stopped_between_two_looks_does_not_begin(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    made = job(doors, "fox", "penguin")
    made.task = "task(x)"
    jobs.interrupt_task("task(x)")  # after the tab looked, and before the job is known
    with pytest.raises(jobs.Interrupted):
        jobs.run(made, lock_held=False)
    assert made.state == "interrupted"


# Keep, Discard and Put back


class Slowly:
    """Writing that waits in the middle."""

    def __init__(self, doors: Doors, patch: pytest.MonkeyPatch) -> None:  # noqa: F811
        self.begun, self.go_on = threading.Event(), threading.Event()
        keeping = doors.module("keeping")
        write = keeping.write_merge

        def waiting(*arguments: Any, **named: Any) -> Any:
            self.begun.set()
            assert self.go_on.wait(60)
            return write(*arguments, **named)

        patch.setattr(keeping, "write_merge", waiting)


def test_discard_says_nothing_was_written_only_where_nothing_is(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs, made = doors.module("jobs"), finished(doors)
    slowly = Slowly(doors, monkeypatch)
    keeping = threading.Thread(target=jobs.keep, args=(made, "pair"))
    keeping.start()
    assert slowly.begun.wait(60)
    with pytest.raises(LoraclrError, match="nothing to discard: the merge is saving"):
        jobs.discard(made)
    with pytest.raises(LoraclrError, match="nothing to keep: the merge is saving"):
        jobs.keep(made, "pair-again")
    finished(doors)
    finished(doors)
    assert made.result is not None, "what is being written is not driven out"
    slowly.go_on.set()
    keeping.join(60)
    assert made.state == "kept" and files(doors.folder) >= {"pair.safetensors", "pair.json"}


def test_what_could_not_be_kept_waits_on(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    jobs, made, before = doors.module("jobs"), finished(doors), files(doors.folder)

    def not_listed(path: Path) -> None:
        raise LoraclrError(f"The WebUI does not list {path}: another LoRA has the same name.")

    with monkeypatch.context() as patch:
        patch.setattr(doors.module("keeping").running, "announce", not_listed)
        with pytest.raises(LoraclrError, match="^The WebUI does not list pair.safetensors: another"):
            jobs.keep(made, "pair")
    assert made.state == "finished" and files(doors.folder) == before, "a file that nobody can choose is not left"
    assert jobs.keep(made, "pair").name == "pair"


def test_replace_keeps_what_it_replaces_and_put_back_restores_it(doors: Doors) -> None:  # noqa: F811
    jobs, made = doors.module("jobs"), finished(doors)
    for suffix in (".json", ".png", ".preview.jpg"):
        (doors.folder / "fox").with_suffix(suffix).write_bytes(b"fox's")
    before = {name: (doors.folder / name).read_bytes() for name in files(doors.folder)}
    jobs.keep(made, "fox", overwrite=True)
    assert (doors.folder / "fox.safetensors").read_bytes() != before["fox.safetensors"]
    assert not (doors.folder / "fox.preview.jpg").exists() and not (doors.folder / "fox.png").exists()
    doors.webui.processing.StableDiffusionProcessing.cached_c[:] = ["key", "stale"]
    jobs.put_back(made)
    assert {name: (doors.folder / name).read_bytes() for name in files(doors.folder)} == before
    assert made.state == "put back"
    assert doors.webui.processing.StableDiffusionProcessing.cached_c == [None, None], "nobody draws with the old one"
    with pytest.raises(LoraclrError, match="nothing to put back: the merge is put back"):
        jobs.put_back(made)


def test_only_what_was_replaced_last_can_be_put_back(doors: Doors) -> None:  # noqa: F811
    jobs, first, second = doors.module("jobs"), finished(doors), finished(doors)
    jobs.keep(first, "fox", overwrite=True)
    between = (doors.folder / "fox.safetensors").read_bytes()
    second.result = second.result.__class__(first_named(second), None, 1)
    jobs.keep(second, "fox", overwrite=True)
    with pytest.raises(LoraclrError, match="nothing to put back: fox replaced nothing, or was replaced since"):
        jobs.put_back(first)
    jobs.put_back(second)
    assert (doors.folder / "fox.safetensors").read_bytes() == between
    assert not [name for name in files(doors.folder) if name.endswith(".replaced")]


def first_named(made: Any) -> Any:
    """The merge with another content."""
    from dataclasses import replace

    merge = made.result.merge
    return replace(merge, factors={key: factors.scaled(2.0) for key, factors in merge.factors.items()})


def test_a_reload_lets_go_of_what_was_replaced(doors: Doors) -> None:  # noqa: F811
    jobs, made = doors.module("jobs"), finished(doors)
    jobs.keep(made, "fox", overwrite=True)
    assert [name for name in files(doors.folder) if name.endswith(".replaced")], "control"
    jobs.unload()
    assert not [name for name in files(doors.folder) if name.endswith(".replaced")]
    with pytest.raises(LoraclrError, match="nothing to put back"):
        jobs.put_back(made)


def test_what_replaced_nothing_is_not_put_back(doors: Doors) -> None:  # noqa: F811
    jobs, made = doors.module("jobs"), finished(doors)
    with pytest.raises(LoraclrError, match="nothing to put back: the merge is finished"):
        jobs.put_back(made)
    jobs.keep(made, "pair")
    with pytest.raises(LoraclrError, match="nothing to put back: pair replaced nothing"):
        jobs.put_back(made)
    assert made.state == "kept" and (doors.folder / "pair.safetensors").is_file()


# Messages


def test_messages_show_no_folder_and_no_flag(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    wording, folder = doors.module("wording"), doors.folder
    for text, shown in {
        f"{folder}/a/x.safetensors exists already: choose another name, or allow overwriting it (--overwrite).": (
            "a/x.safetensors exists already: choose another name, or replace it."
        ),
        f"The output name 'x' leaves {folder} or has": "The output name 'x' leaves the LoRA folder or has",
        "give at least one that calls no concept (--plain).": "give at least one that calls no concept.",
        "give it some (trigger=…), or say so (kind=style).": "give it some, or say so (its kind).",
        "OSError: [Errno 28] No space: '/home/somebody/tmp/x.bin'": "OSError: [Errno 28] No space: 'x.bin'",
        r"C:\Users\somebody\x.yaml cannot be read": "x.yaml cannot be read",
        r"\\server\share\x.yaml": "x.yaml",
        "1/2 of txt2img and img2img, see https://example.org/a/b": "1/2 of txt2img and img2img, see https://example.org/a/b",
        "use it as <lora:x:1> / <lora:y:1>, models/Lora": "use it as <lora:x:1> / <lora:y:1>, models/Lora",
    }.items():
        assert wording.plain(text) == shown


def test_no_message_of_keep_shows_the_folder(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    jobs, made = doors.module("jobs"), finished(doors)
    root = str(doors.folder.parent)
    for name in ("../x", "/x", "con", "a" * 300, "fox"):
        with pytest.raises(LoraclrError) as refused:
            jobs.keep(made, name)
        assert root not in str(refused.value) and "--" not in str(refused.value)
    with pytest.raises(jobs.NameTaken):
        jobs.keep(made, "fox")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        LoraclrError, match=r"^pair\.safetensors cannot be written \(No space left on device\): free some"
    ):
        jobs.keep(made, "pair")
    assert made.state == "finished"
