"""What the tab does with a merge: shows it, keeps it, lets go of it, and says what went wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from webui_doors import SMALL, Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, let_fail, merged, restored, shown, tab

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.output.report import ConceptReport, MergeReport
from lib_loraclr.request.merge_request import Concept, MergeRequest


def test_a_result_has_a_name_of_its_own_whatever_is_chosen_next(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    seen = merged(doors, bound, values)
    assert seen["name"]["value"] == "fox-penguin" and seen["name"]["label"] == "Name of the new LoRA"
    # another page, and the next LoRAs are chosen in this one
    assert restored(doors, bound, "", "")["name"]["value"] == "fox-penguin"
    assert "fox-penguin" not in str(bound.select(json.dumps(TABLE), "{}", ["fox"]))
    assert "Kept as fox-penguin" in bound.keep(seen["job"], "", "")[0], "and so where the field is emptied"
    assert merged(doors, bound, values)["name"]["value"] == "fox-penguin-2"


def test_the_folder_is_there_that_pictures_go_through(doors: Doors, tmp_path: Path) -> None:  # noqa: F811
    """Forge Neo names one from the start, and makes none: gradio's picture ended in an error there."""
    bound, values = tab(doors)
    doors.webui.shared.opts.temp_dir = str(tmp_path / "data" / "tmp")
    assert merged(doors, bound, values, draw=True)["picture"]["visible"] and (tmp_path / "data" / "tmp").is_dir()


@pytest.mark.parametrize("name", ["../x", "a:b", "con", "x" * 300])
def test_a_name_that_may_not_be_is_refused_where_it_is_written(doors: Doors, name: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    assert "The output name" in bound.named(job_id, name, "") and bound.named(job_id, "fine", "") == ""
    assert "The output name" in bound.named(job_id, "fine", "../up"), "a sub-folder too"
    assert bound.named(job_id, "", "made") == "", "the proposed one is right"


@pytest.mark.parametrize(("error", "told"), [(LoraclrError("too big"), "too big"), (Interrupted(), "Interrupted")])
def test_a_merge_that_ended_while_the_page_was_loaded_anew_is_told_of(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "making", "merge_loras", error)
    bound.merge("task(1)", json.dumps(TABLE), CHOSEN, "", False, *values)
    seen = restored(doors, bound, "", "task(1)")
    assert told in seen["view"] and seen["job"] == ""
    assert not any(seen[name]["visible"] for name in ("picture", "decide", "use"))
    assert "value" not in bound.restore("", "")[0], "once, and only to the page that waited for it"


def test_what_was_decided_on_in_another_page_is_not_asked_for_any_more(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    assert "visible" not in restored(doors, bound, job_id, "")["decide"], "control: it is still to be decided"
    bound.keep(job_id, "pair", "")
    assert restored(doors, bound, job_id, "")["decide"]["visible"] is False


def test_merge_keep_send(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    seen = merged(doors, bound, values, draw=True)
    view, job_id = seen["view"], seen["job"]
    assert "Retention" in view and "Pictures without a trigger" in view and "fox" in view and seen["log"] == ""
    assert seen["picture"]["visible"] and seen["picture"]["value"].width > 100
    assert seen["decide"]["visible"] and not seen["use"]["visible"] and not seen["replace"]["visible"]
    assert restored(doors, bound, "", "")["job"] == job_id  # the page was loaded anew
    message, decide, use, replaced, _, known = bound.keep(job_id, "fox", "")
    assert "exists already" in message and replaced["visible"] and known == ""
    message, decide, use, replaced, _, known = bound.keep(job_id, "pair", "made")
    assert "&lt;lora:pair:1&gt;" in message and not decide["visible"] and use["visible"]
    assert {k: v for k, v in json.loads(known).items() if k != "fresh"} == {
        "tag": "<lora:pair:1>",
        "triggers": ["sks animal", "bird"],
        "inputs": ["fox", "penguin", "pingu"],
        "name": "pair",
    }
    bound.open_folder(job_id)
    assert doors.reported == [str(doors.folder / "made")]
    assert restored(doors, bound, "", "")["job"] == ""


@pytest.mark.parametrize("flag", ["hide_ui_dir_config", "webui_is_non_local"])
def test_the_folder_is_opened_only_where_the_webui_allows_it(doors: Doors, flag: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
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
    first = merged(doors, bound, values)["job"]
    assert "choose two or more" in bound.merge("", "{}", [], first, False, *values)[0]
    assert jobs.find(first).state == "finished"
    bound.merge("", json.dumps(TABLE), CHOSEN, first, False, *values)
    assert jobs.find(first).state == "discarded"


def _told(concepts: tuple[ConceptReport, ...], **changes: Any) -> Any:
    """A job with a report of these concepts."""
    asked = tuple(Concept(f"{c.name}.safetensors", trigger=c.trigger, **changes) for c in concepts)
    request = MergeRequest(asked, options={"effort": "balanced"})
    report = MergeReport("contrastive", "s", concepts, 0.9, 0.3)
    merge = SimpleNamespace(report=report, request=request)
    return SimpleNamespace(
        result=SimpleNamespace(merge=merge, size=1 << 20), request=request, former=None, went_on_from=""
    )


def test_each_concept_has_a_verdict_and_the_share_at_which_it_is_recognised_once(doors: Doors) -> None:  # noqa: F811
    views = doors.module("views")
    concepts = (
        ConceptReport("<b>", "", -1.5, 0.5, recognised=0.9, taken_for={"<b>": 0.9, "": 0.1}),
        ConceptReport("mono", "t", None, None, recognised=0.1, taken_for={"mono": 0.1, "": 0.9}),
        ConceptReport("unseen", "u", None, None),
    )
    view = views.result_view(_told(concepts))
    for text in ("&lt;b&gt;", "kept", "90%", "lost: nothing instead", "n/a", "width:10%", "-1.500", "change a little"):
        assert text in view, text
    assert view.count("90%") == 2 and "loraclr-chart" not in view, "the bar and its figure, and no second chart"


@pytest.mark.parametrize(
    ("taken", "kind", "told", "colour"),
    [
        ({"fox": 1.0}, "subject", "Every concept is kept.", "loraclr-kept"),
        ({"fox": 0.5, "cat": 0.5}, "subject", "fox is weakened", "loraclr-weakened"),
        (
            {"cat": 0.9, "fox": 0.1},
            "subject",
            "trigger words for fox that have nothing in common with those of cat",
            "lost",
        ),
        (
            {"": 1.0},
            "style",
            "fox is lost: it is recognised in 0% of what was tried, and nothing is drawn",
            "loraclr-lost",
        ),
        ({"": 1.0}, "style", "effort thorough or its importance at 2", "loraclr-lost"),
        ({"": 1.0}, "subject", "its kind set to style, if it is one", "loraclr-lost"),
    ],
)
def test_beside_keep_stands_what_to_do_about_the_worst(
    doors: Doors,  # noqa: F811
    taken: dict[str, float],
    kind: str,
    told: str,
    colour: str,
) -> None:
    fine = ConceptReport("cat", "c", 0.1, 0.9, recognised=1.0, taken_for={"cat": 1.0})
    fox = ConceptReport("fox", "f", 0.1, 0.9, recognised=taken.get("fox", 0.0), taken_for=taken)
    view = doors.module("views").advice_view(_told((fine, fox), kind=kind))
    assert told in view and colour in view


def test_the_advice_is_part_of_the_result_and_goes_with_it(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bound, values = tab(doors)
    monkeypatch.setattr(doors.module("views"), "advice", lambda *_: "fox is lost: do this.")
    seen = merged(doors, bound, values)
    assert "fox is lost: do this." in seen["advice"]
    assert shown(doors, bound.discard(seen["job"]))["advice"] == ""


def test_interrupt_stops_the_merge_it_belongs_to_and_nothing_else(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    making, state = doors.module("making"), doors.webui.shared.state
    bound.interrupt("task(merge)")
    view = bound.merge("task(merge)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert "Interrupted. Nothing was kept" in view, "it was stopped while it waited"

    def pressed(task: str) -> Any:
        def merging(request: Any, host: Any, progress: Any, **more: Any) -> Any:
            bound.interrupt(task)
            progress.advance()
            return merge_loras(request, host, progress, **more)

        return merging

    merge_loras = making.merge_loras
    monkeypatch.setattr(making, "merge_loras", pressed("task(running)"))
    assert "Interrupted" in bound.merge("task(running)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert not state.interrupted, "a picture that begins just then goes on"
    monkeypatch.setattr(making, "merge_loras", pressed("task(other)"))
    assert "Retention" in bound.merge("task(third)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]


def test_interrupting_a_picture_that_waits_stops_no_merge(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    making = doors.module("making")
    merge_loras = making.merge_loras

    def merging(*arguments: Any, **more: Any) -> Any:
        doors.webui.shared.state.interrupt()  # somebody's txt2img, which waits for the queue
        return merge_loras(*arguments, **more)

    monkeypatch.setattr(making, "merge_loras", merging)
    assert "Retention" in bound.merge("task(merge)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert doors.webui.shared.state.interrupted, "control: it was pressed"


def test_an_error_nobody_foresaw_is_said_and_leaves_no_old_result_to_keep(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "making", "merge_loras", RuntimeError("CUDA error: an illegal memory access"))
    view, picture, _, decide, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
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
        "making",
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
    let_fail(doors, monkeypatch, "making", "merge_loras", error)
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
    let_fail(doors, monkeypatch, "making", "draw_pictures", error)
    view, picture, _, decide, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", True, *values)
    assert "the merge is complete" in view and "Retention" in view
    assert picture["visible"] is False and decide["visible"] is True


def test_a_finished_merge_is_not_thrown_away_for_the_next_ones_estimate(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "pace", "learn", OSError("database is locked"))
    view, _, _, decide, *_ = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
    assert "Retention" in view and decide["visible"] is True and len(doors.reported) == 1


def test_replacing_without_a_picture_leaves_no_old_one(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    for picture in (True, False):
        job_id = merged(doors, bound, values, draw=picture)["job"]
        write = bound.keep if picture else bound.replace
        assert "Kept as pair" in write(job_id, "pair", "")[0]
        assert (doors.folder / "pair.png").is_file() == picture
        # what the WebUI itself saves as a card's picture
        (doors.folder / "pair.preview.jpg").write_bytes(b"")
    bound.replace(merged(doors, bound, values, draw=True)["job"], "pair", "")
    assert [path.name for path in doors.folder.glob("pair.*g")] == ["pair.png"]


def test_what_was_replaced_can_be_put_back_and_only_that(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    first = merged(doors, bound, values, draw=True)["job"]
    *_, offered, _ = bound.keep(first, "pair", "")
    assert offered["visible"] is False, "nothing was replaced"
    before = {path.name: path.read_bytes() for path in doors.folder.glob("pair.*")}
    second = merged(doors, bound, values, draw=False)["job"]
    *_, offered, known = bound.replace(second, "pair", "")
    assert offered["visible"] is True
    assert {path.name: path.read_bytes() for path in doors.folder.glob("pair.*")} != before
    said, use, told = bound.put_back(second)
    assert "Put back: pair is again what it was" in said and use["visible"] is False
    assert json.loads(told)["fresh"] != json.loads(known)["fresh"], "the browser lists the LoRAs anew"
    assert {path.name: path.read_bytes() for path in doors.folder.glob("pair.*")} == before
    said, use, told = bound.put_back(second)
    assert "There is nothing to put back" in said and "visible" not in use and not told


def test_a_page_that_is_loaded_anew_has_the_rows_and_fields_of_its_own_merge(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    bound, values = tab(doors, effort="Fast", quality="masterpiece")
    bound.merge("task(1)", json.dumps(TABLE), CHOSEN, "", False, *values)
    picked, taken, draw, *fields = json.loads(bound.restore("", "task(1)")[-1])
    assert picked == ["fox", "animals/penguin  ·  pingu"] and draw is False and fields == values
    again = rows.selected(["fox", "penguin"], rows.Table(), rows.Table.parse(taken)).rows
    assert [(row["te_weight"], row["trigger"]) for row in again] == [("0.5", " sks animal "), ("1", "bird")]
    assert bound.restore("", "")[-1] == bound.restore("", "task(2)")[-1] == "", (
        "another page's merge is none of its business"
    )


def test_a_merge_that_reload_ui_stopped_is_told_of_and_offered_again(doors: Doors) -> None:  # noqa: F811
    start, jobs = doors.module("start"), doors.module("jobs")
    bound, values = tab(doors)
    table = json.dumps(TABLE)
    request, names = doors.module("form").build(doors.module("rows").Table.parse(table), bound._fields(values))
    running = jobs.Job(request, names, False, "task(1)", form=(table, CHOSEN, False, values))
    with doors.webui.call_queue.queue_lock:  # a picture is being made
        jobs.start(running)
        start.end_former()
    *seen, asked = bound.restore("", "")
    view = shown(doors, seen)["view"]
    assert "The merge of fox, penguin was stopped by Reload UI, and nothing was kept" in view and "press Merge" in view
    assert json.loads(asked)[0] == ["fox", "animals/penguin  ·  pingu"]
    assert "value" not in restored(doors, bound, "", "")["view"], "once: what is looked at next stays"


def test_a_merge_gives_way_to_reload_ui_which_waits_for_it(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bound, values = tab(doors)
    server = SimpleNamespace(should_exit=False)
    monkeypatch.setattr(doors.webui.shared, "demo", SimpleNamespace(server=server), raising=False)
    assert "Recognised" in merged(doors, bound, values)["view"], "control: it is not closing"
    bound.discard(doors.module("jobs").waiting().id)
    server.should_exit = True
    assert "Interrupted" in bound.merge("task(1)", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    doors.module("start").end_former()
    assert "stopped by Reload UI" in restored(doors, bound, "", "")["view"]


def test_a_result_that_becomes_a_checkpoint_is_called_one(doors: Doors) -> None:  # noqa: F811
    doors.webui.write_checkpoint()
    for save_as, label, copy in (("checkpoint", "checkpoint", "Copy trigger words"), ("lora", "LoRA", "Copy tag")):
        bound, values = tab(doors, save_as=save_as)
        seen = merged(doors, bound, values)
        assert seen["name"]["label"] == f"Name of the new {label}" and seen["copy"]["value"] == copy
