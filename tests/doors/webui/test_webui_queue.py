"""The tab's queue: merges one after the other, each kept at once, on the stand-in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_webui_owners import wait_until
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, let_fail, tab

from lib_loraclr.errors import LoraclrError

MINE = "task(page-)"


def enqueue(bound: Any, values: list[Any], name: str = "", *, task: str = MINE, table: Any = TABLE) -> list[Any]:
    return bound.enqueue(task, json.dumps(table), CHOSEN, name, False, *values)


def words(view: str) -> list[str]:
    """Name and state of each merge in the queue."""
    rows = re.findall(r"<b>(.*?)</b> <span[^>]*>(.*?)</span>", view)
    return [f"{name}: {state}" for name, state in rows]


def ids(view: str) -> list[str]:
    return re.findall(r"data-job='(\w+)'", view)


def over(doors: Doors, owner: str = "page") -> None:  # noqa: F811
    jobs = doors.module("jobs")
    wait_until(lambda: not jobs._worker and all(made.state in jobs.OVER for made in jobs.of_owner(owner)))


def test_one_after_the_other_each_is_kept_and_nothing_is_overwritten(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors)
    fox = (doors.folder / "fox.safetensors").read_bytes()
    with doors.webui.call_queue.queue_lock:  # a picture is being made
        for name in ("", "fox", "night/fox", ""):
            message, view, field = enqueue(bound, values, name)
            assert (message, field) == ("", "")
        # the first may have been taken to wait for the model already
        assert words(view) == ["fox-penguin: waits", "fox: waits", "night/fox: waits", "fox-penguin: waits"]
        assert "data-busy='1' data-kept='0'" in view and len(jobs._line) >= 3
        assert jobs.waiting("page") is None
    over(doors)
    view = bound.queue(MINE)
    told = ["fox-penguin: kept", "fox: kept as fox-2", "night/fox: kept as fox-3", "fox-penguin: kept as fox-penguin-2"]
    assert words(view) == told and "data-busy='0' data-kept='4'" in view
    made = {path.relative_to(doors.folder).as_posix() for path in doors.folder.rglob("*.safetensors")}
    assert {"fox-penguin.safetensors", "fox-2.safetensors", "night/fox-3.safetensors"} < made
    assert (doors.folder / "fox.safetensors").read_bytes() == fox and "fox-3" in bound.history()
    assert jobs.waiting("page") is None and all(job.result is None for job in jobs.of_owner("page"))
    assert bound.queue("task(other-)") == bound.queue("") and "Merges that are added here" in bound.queue("")


def test_a_merge_that_fails_is_told_and_the_next_goes_on(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bound, values = tab(doors)
    make = doors.module("jobs").make
    for name, error in {"mended": LoraclrError("gone"), "ours": OSError("disk"), "memory": MemoryError()}.items():

        def failing(job: Any, *arguments: Any, error: Exception = error) -> Any:
            if job.keeps_as == "ill":
                raise error
            return make(job, *arguments)

        monkeypatch.setattr(doors.module("jobs"), "make", failing)
        with doors.webui.call_queue.queue_lock:
            enqueue(bound, values, "ill")
            enqueue(bound, values, name)
        over(doors)
        first, second = words(bound.queue(MINE))[-2:]
        assert first.startswith("ill: failed: ") and second == f"{name}: kept"
        assert str(error) in first or "memory" in first.lower()


def test_what_cannot_be_written_is_held_and_can_be_kept_by_hand(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    jobs = doors.module("jobs")
    with monkeypatch.context() as patch:
        let_fail(doors, patch, "keeping", "write", LoraclrError("the disk is full"))
        enqueue(bound, values, "night")
        over(doors)
    [told] = words(bound.queue(MINE))
    assert told == "night: merged, and not kept: the disk is full Keep it on the right."
    waiting = jobs.waiting("page")
    assert waiting.result is not None and "Kept as night" in bound.keep(waiting.id, "night", "")[0]
    assert words(bound.queue(MINE)) == ["night: kept"]


def test_what_is_about_to_be_kept_drives_out_no_result_that_waits(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors)
    held = []
    for number in range(2):
        bound.merge(f"task(page-{number})", json.dumps(TABLE), CHOSEN, "", False, *values)
        held.append(jobs.waiting("page"))
    enqueue(bound, values)
    over(doors)
    assert [job.state for job in held] == ["finished", "finished"]


def test_one_is_taken_out_and_all_but_what_runs(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors)
    with doors.webui.call_queue.queue_lock:
        for name in "abcd":
            view = enqueue(bound, values, name)[1]
        wait_until(lambda: len(jobs._line) == 3)  # the first waits for the model
        running, second, *_ = jobs.of_owner("page")
        running.state = "running"
        assert bound.unqueue("task(other-)", second.id) == bound.queue(""), "nobody takes out another's"
        assert words(bound.unqueue(MINE, ids(view)[1]))[1:] == ["c: waits", "d: waits"]
        assert [name[0] for name in words(bound.empty_queue(MINE))] == ["a"]
        assert not running.stop and "Stop</button>" in bound.queue(MINE)
        assert [name[0] for name in words(bound.unqueue(MINE, running.id))] == ["a"] and running.stop
    over(doors)
    assert words(bound.queue(MINE)) == ["a: interrupted"]
    assert "Merges that are added here" in bound.unqueue(MINE, running.id)
    assert not [path for name in "abcd" for path in doors.folder.glob(f"{name}.safetensors")]


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [
        ("../out", TABLE["rows"], "output name"),
        ("con", TABLE["rows"], "output name"),
        ("fine", [], "nothing to merge"),
        ("fine", [{**TABLE["rows"][0], "importance": "x"}], "importance of fox"),
    ],
)
def test_what_cannot_be_is_said_at_once(doors: Doors, name: str, rows: Any, told: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    chosen = [row["lora"] for row in rows]
    message, view, _ = bound.enqueue(MINE, json.dumps({"taken": "", "rows": rows}), chosen, name, False, *values)
    assert told in message
    assert "Merges that are added here" in view and not doors.module("jobs").of_owner("page")


def test_the_sub_folder_of_the_settings_and_a_checkpoint_s_own_folder(doors: Doors) -> None:  # noqa: F811
    base = doors.webui.write_checkpoint()
    doors.webui.shared.opts.loraclr_sub_folder = "merged"
    for save_as in ("lora", "checkpoint"):
        bound, values = tab(doors, save_as=save_as)
        enqueue(bound, values, "" if save_as == "lora" else "whole")
    over(doors)
    assert (doors.folder / "merged" / "fox-penguin.safetensors").is_file()
    assert Path(base.parent / "whole.safetensors").is_file()
    assert words(bound.queue(MINE)) == ["merged/fox-penguin: kept", "whole: kept"]


def test_a_tab_that_is_made_anew_empties_it(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors)
    with doors.webui.call_queue.queue_lock:
        for name in "abc":
            enqueue(bound, values, name)
        jobs.unload()
    wait_until(lambda: not jobs._worker)
    assert not jobs.of_owner("page") or {job.state for job in jobs.of_owner("page")} == {"interrupted"}
    assert not (doors.folder / "b.safetensors").exists()
