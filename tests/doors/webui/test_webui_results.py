"""What the tab does with a merge: shows it, keeps it, lets go of it, and says what went wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from webui_doors import SMALL, Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, let_fail, tab

from lib_loraclr.errors import Interrupted, LoraclrError


def test_after_a_merge_the_name_is_free_again(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)[5]
    name = bound.keep(job_id, "fox-penguin", "")[-1]
    assert name == "fox-penguin" and bound.another(json.dumps(TABLE), name, "") == "fox-penguin-2"
    assert bound.another(json.dumps(TABLE), "my own", "") == "my own"


@pytest.mark.parametrize(("error", "told"), [(LoraclrError("too big"), "too big"), (Interrupted(), "Interrupted")])
def test_a_merge_that_ended_while_the_page_was_loaded_anew_is_told_of(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "jobs", "merge_loras", error)
    bound.merge("task(1)", json.dumps(TABLE), CHOSEN, "", False, *values)
    view, picture, decide, use, _, job_id = bound.restore("", "task(1)")
    assert told in view and job_id == "" and not (picture["visible"] or decide["visible"] or use["visible"])
    assert "value" not in bound.restore("", "")[0], "once, and only to the page that waited for it"


def test_what_was_decided_on_in_another_page_is_not_asked_for_any_more(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)[5]
    assert "visible" not in bound.restore(job_id, "")[2], "control: it is still to be decided"
    bound.keep(job_id, "pair", "")
    assert bound.restore(job_id, "")[2]["visible"] is False


def test_merge_keep_send(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    view, picture, decide, use, replaced, job_id, log = bound.merge("", json.dumps(TABLE), CHOSEN, "", True, *values)
    assert "Retention" in view and "Base drift" in view and "fox" in view and log == ""
    assert picture["visible"] and picture["value"].width > 100
    assert decide["visible"] and not use["visible"] and not replaced["visible"]
    assert bound.restore("", "")[-1] == job_id  # the page was loaded anew
    message, decide, use, replaced, known, name = bound.keep(job_id, "fox", "")
    assert "exists already" in message and replaced["visible"] and known == ""
    message, decide, use, replaced, known, name = bound.keep(job_id, "pair", "made")
    assert "&lt;lora:pair:1&gt;" in message and not decide["visible"] and use["visible"] and name == "pair"
    assert {k: v for k, v in json.loads(known).items() if k != "fresh"} == {
        "tag": "<lora:pair:1>",
        "triggers": ["sks animal", "bird"],
        "inputs": ["fox", "penguin", "pingu"],
    }
    bound.open_folder(job_id)
    assert doors.reported == [str(doors.folder / "made")]
    assert bound.restore("", "")[-1] == ""


@pytest.mark.parametrize("flag", ["hide_ui_dir_config", "webui_is_non_local"])
def test_the_folder_is_opened_only_where_the_webui_allows_it(doors: Doors, flag: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)[5]
    bound.keep(job_id, "pair", "")
    setattr(doors.webui.shared.cmd_opts, flag, True)
    bound.open_folder(job_id)
    assert not doors.reported
    setattr(doors.webui.shared.cmd_opts, flag, False)
    bound.open_folder(job_id)
    assert doors.reported == [str(doors.folder)]


def test_merging_again_lets_go_of_the_result_that_was_shown(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors)
    first = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)[5]
    assert "choose at least one" in bound.merge("", "{}", [], first, False, *values)[0]
    assert jobs.find(first).state == "finished"
    bound.merge("", json.dumps(TABLE), CHOSEN, first, False, *values)
    assert jobs.find(first).state == "discarded"


def test_figures_below_zero_and_none_are_drawn(doors: Doors) -> None:  # noqa: F811
    views = doors.module("views")
    from lib_loraclr.output.report import ConceptReport, MergeReport

    concepts = (ConceptReport("<b>", "", -1.5, 0.5), ConceptReport("none", "t", None, None))
    chart = views._chart(MergeReport("m", "s", concepts, None, None))
    assert (
        "&lt;b&gt;" in chart
        and "left:50.0%;width:25.0%" in chart
        and "left:0.0%;width:50.0%" in chart
        and "-1.500" in chart
    )


def test_interrupt_stops_the_merge_it_belongs_to_and_nothing_else(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    jobs, state = doors.module("jobs"), doors.webui.shared.state
    bound.interrupt("task(merge)")
    view = bound.merge("task(merge)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert "Interrupted. Nothing was kept" in view, "it was stopped while it waited"

    def pressed(task: str) -> Any:
        def merging(request: Any, host: Any, progress: Any) -> Any:
            bound.interrupt(task)
            progress.advance()
            return merge_loras(request, host, progress)

        return merging

    merge_loras = jobs.merge_loras
    monkeypatch.setattr(jobs, "merge_loras", pressed("task(running)"))
    assert "Interrupted" in bound.merge("task(running)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert not state.interrupted, "a picture that begins just then goes on"
    monkeypatch.setattr(jobs, "merge_loras", pressed("task(other)"))
    assert "Retention" in bound.merge("task(third)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]


def test_interrupting_a_picture_that_waits_stops_no_merge(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    jobs = doors.module("jobs")
    merge_loras = jobs.merge_loras

    def merging(*arguments: Any) -> Any:
        doors.webui.shared.state.interrupt()  # somebody's txt2img, which waits for the queue
        return merge_loras(*arguments)

    monkeypatch.setattr(jobs, "merge_loras", merging)
    assert "Retention" in bound.merge("task(merge)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert doors.webui.shared.state.interrupted, "control: it was pressed"


def test_an_error_nobody_foresaw_is_said_and_leaves_no_old_result_to_keep(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "jobs", "merge_loras", RuntimeError("CUDA error: an illegal memory access"))
    view, picture, decide, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
    assert "RuntimeError: CUDA error: an illegal memory access" in view and "Nothing was kept" in view
    assert picture["visible"] is False and decide["visible"] is False
    assert doors.reported == ["LoRACLR: the merge failed"]


def test_where_the_cards_memory_runs_out_the_remedy_is_said(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    let_fail(
        doors,
        monkeypatch,
        "jobs",
        "merge_loras",
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    )
    view, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
    assert "The graphics memory ran out" in view and "effort Layers" in view and "GiB" not in view
    assert doors.reported == []


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]
)
def test_where_the_computers_memory_runs_out_the_remedy_is_said(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "jobs", "merge_loras", error)
    view, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
    assert "The computer&#x27;s memory ran out" in view and "memory budget" in view and "alloc" not in view
    assert doors.reported == []


@pytest.mark.parametrize(
    "error", [LoraclrError("NaNs in VAE"), Interrupted(), torch.cuda.OutOfMemoryError("out"), OSError("font")]
)
def test_a_finished_merge_is_not_thrown_away_for_its_picture(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "jobs", "preview_grid", error)
    view, picture, decide, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", True, *values)
    assert "the merge is complete" in view and "Retention" in view
    assert picture["visible"] is False and decide["visible"] is True


def test_a_finished_merge_is_not_thrown_away_for_the_next_ones_estimate(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "pace", "learn", OSError("database is locked"))
    view, _, decide, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
    assert "Retention" in view and decide["visible"] is True and len(doors.reported) == 1


def test_replacing_without_a_picture_leaves_no_old_one(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    for picture in (True, False):
        job_id = bound.merge("", json.dumps(TABLE), CHOSEN, "", picture, *values)[5]
        write = bound.keep if picture else bound.replace
        assert "Kept as pair" in write(job_id, "pair", "")[0]
        assert (doors.folder / "pair.png").is_file() == picture
        # what the WebUI itself saves as a card's picture
        (doors.folder / "pair.preview.jpg").write_bytes(b"")
    bound.replace(bound.merge("", json.dumps(TABLE), CHOSEN, "", True, *values)[5], "pair", "")
    assert [path.name for path in doors.folder.glob("pair.*g")] == ["pair.png"]
