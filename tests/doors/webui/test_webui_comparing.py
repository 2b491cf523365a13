"""Methods side by side in the tab, on the stand-in."""

from __future__ import annotations

import html
import io
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, let_fail, merged, restored, shown, tab

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.merge import Made, Outcome
from lib_loraclr.progress import PlannedStage, Stage, Work
from lib_loraclr.refining import Retention

SOME = ["Average", "Closed form", "TIES", "Weighted sum (all tags)"]


def compared(
    doors: Doors,  # noqa: F811
    bound: Any,
    values: list[Any],
    methods: list[str] | None = SOME,
    *,
    task: str = "task(page-1)",
    before: str = "",
    table: Any = TABLE,
    draw: bool = False,
) -> dict[str, Any]:
    """What the column shows after a comparison."""
    chosen = [row["lora"] for row in table["rows"]]
    return shown(doors, bound.compare(task, json.dumps(table), chosen, before, draw, *values, methods))


def rows(view: str) -> list[list[str]]:
    """The table's cells, without its head."""
    body = re.search(r"<tbody>(.*)</tbody>", view, re.DOTALL)[1]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in body.split("</tr>")[:-1]]
    return [[html.unescape(cell) for cell in row] for row in cells]


def test_methods_stand_side_by_side_the_best_first_and_nothing_is_held(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    seen = compared(doors, bound, values)
    found = rows(seen["view"])
    means = [float(row[3]) for row in found]
    assert {row[0] for row in found} == {*SOME} and means == sorted(means, reverse=True) and len({*means}) > 1
    for row in found:
        concepts = [float(cell) for cell in row[1:3]]
        assert float(row[3]) == pytest.approx(sum(concepts) / 2, abs=0.001) and float(row[4]) == min(concepts)
    for text in (
        "fox",
        "penguin",
        "Base drift",
        "Seconds",
        "0 as if it were not there",
        f"{found[0][0]} keeps most here",
    ):
        assert text in seen["view"], text
    assert not seen["decide"]["visible"] and not seen["picture"]["visible"] and "<figure" not in seen["view"]
    job = doors.module("jobs").find(seen["job"])
    assert job.state == "compared" and job.result is None and job.fraction() == 1.0
    assert all(own.made.factors == {} for own in job.comparison.outcomes)
    assert not list(doors.folder.rglob("fox-penguin*"))


def test_without_a_choice_all_methods_are_tried_each_at_its_defaults_with_the_effort(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def outcome_of(_: Any, method: str, options: dict[str, Any]) -> Outcome:
        asked[method] = options
        return Outcome(Made(method, {}, 4.0, {}), Retention((0.5, 0.7), 0.1), 1.0)

    monkeypatch.setattr(doors.module("comparison"), "outcome_of", outcome_of)
    bound, values = tab(doors, method="contrastive", effort="Fast", **{"option.contrastive.negative": 0.2})
    offered = bound.comparable()["choices"]
    view = compared(doors, bound, values, [])["view"]
    assert len(asked) == len(offered) == len(rows(view)) > 12 and {row[0] for row in rows(view)} == {*offered}
    assert {method for method, options in asked.items() if options} == {"contrastive"}
    assert asked["contrastive"] == {"effort": "fast"}


def test_every_method_merges_what_is_there(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors, method="contrastive", effort="Layers")
    found = rows(compared(doors, bound, values, [])["view"])
    assert {row[0] for row in found} == {*bound.comparable()["choices"]}
    assert all(len(row) == 8 for row in found), "each has its figures, and none a reason why not"
    assert doors.module("jobs").waiting("page").comparison.failed == {} and not doors.reported


def test_the_best_three_are_drawn_where_pictures_are_drawn(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    view = compared(doors, bound, values, draw=True)["view"]
    best = [row[0] for row in rows(view)][:3]
    assert re.findall(r"<figcaption><b>([^<]*)</b>", view) == best
    files = doors.module("jobs").waiting("page").comparison.sheets
    sizes = [Image.open(io.BytesIO(file)).size for file in files.values()]
    assert len(files) == 3 and all(width > 100 for width, _ in sizes) and len({*files.values()}) == 3


def test_a_method_that_fails_is_told_in_its_place_and_ends_none_of_the_others(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparison = doors.module("comparison")
    outcome_of = comparison.outcome_of
    wrong = {
        "average": LoraclrError(f"no room for {doors.folder}/fox.safetensors"),
        "ridge": RuntimeError("<b>singular</b>"),
        "ties": MemoryError(),
    }

    def failing(several: Any, method: str, options: Any) -> Outcome:
        if method in wrong:
            raise wrong[method]
        return outcome_of(several, method, options)

    monkeypatch.setattr(comparison, "outcome_of", failing)
    bound, values = tab(doors)
    view = compared(doors, bound, values)["view"]
    assert [row[0] for row in rows(view)] == ["Weighted sum (all tags)", "Average", "Closed form", "TIES"]
    assert "no room for fox" in view and str(doors.folder) not in view and "<b>singular" not in view
    assert "RuntimeError: &lt;b&gt;singular&lt;/b&gt;. The WebUI&#x27;s log has the details." in view
    assert "The memory ran out." in view and doors.reported == ["LoRACLR: Closed form failed"]
    only = compared(doors, bound, values, ["Average"])
    assert "no room for fox" in only["view"] and "loraclr-error" in only["view"] and only["job"] == ""
    assert doors.module("jobs").of_task("task(page-1)").state in ("compared", "failed")


def test_interrupt_shows_what_was_tried_and_leaves_the_model_as_it_was(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    unet = doors.webui.model.model.diffusion_model
    before = {name: tensor.clone() for name, tensor in doors.webui.model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in doors.webui.model.modules()]
    bound.interrupt("task(page-waits)")
    assert "Interrupted. Nothing was kept" in compared(doors, bound, values, task="task(page-waits)")["view"]

    def press(task: str, method: str) -> dict[str, Any]:
        """Interrupt is pressed at the first evaluation while that method is tried."""
        jobs = doors.module("jobs")

        def pressed(*_: Any) -> None:
            job = jobs.of_task(task)
            if job.progress and method in doors.webui.shared.state.textinfo:
                bound.interrupt(task)

        hook = unet.register_forward_pre_hook(pressed)
        try:
            return compared(doors, bound, values, task=task, draw=True)
        finally:
            hook.remove()

    seen = press("task(page-early)", "Average (1 of 4)")
    assert "Interrupted. Nothing was kept" in seen["view"] and seen["job"] == ""
    seen = press("task(page-late)", "Closed form (2 of 4)")
    # in the order of the methods themselves, whatever the order of the choice
    assert [row[0] for row in rows(seen["view"])] == ["Average"]
    assert "It was interrupted at Closed form: 1 of 4 methods were tried." in seen["view"]
    assert "<figure" not in seen["view"], "whoever stops it does not wait for pictures"
    after = doors.webui.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert hooks == [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in doors.webui.model.modules()
    ]
    assert not doors.webui.shared.state.interrupted, "a picture that begins just then goes on"
    assert len(rows(compared(doors, bound, values)["view"])) == 4, "control: by itself it goes through"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LoraclrError("gone"), "gone"),
        (Interrupted(), "Interrupted. Nothing was kept, and everything is as it was.<"),
        (OSError("disk"), "OSError: disk"),
    ],
)
def test_whatever_ends_it_is_said_here_and_to_a_page_that_was_loaded_anew(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    doors.webui.shared.opts.loraclr_work_limit = 64  # where merges go on, this does not
    bound, values = tab(doors)
    let_fail(doors, monkeypatch, "comparison", "Several", error)
    assert told in compared(doors, bound, values)["view"]
    assert told in restored(doors, bound, "", "task(page-1)")["view"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"lora": "big"}, "big cannot be merged: made for SDXL"),
        ({"lora": "nobody"}, "There is no installed LoRA &#x27;nobody&#x27;"),
    ],
)
def test_what_cannot_be_merged_is_not_compared(doors: Doors, row: dict[str, Any], told: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    assert told in compared(doors, bound, values, table={"rows": [TABLE["rows"][0], row]})["view"]
    assert "choose two or more" in compared(doors, bound, values, table={"rows": TABLE["rows"][:1]})["view"]
    assert "choose two or more" in compared(doors, bound, values, table={"rows": []})["view"]


def test_a_page_that_is_loaded_anew_finds_it_until_the_next_is_asked_for(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    jobs = doors.module("jobs")
    first = compared(doors, bound, values)["job"]
    again = restored(doors, bound, "", "task(page-)")
    assert again["job"] == first and len(rows(again["view"])) == 4
    assert "view" not in restored(doors, bound, first, "task(page-)")["view"], "what is shown stays as it is"
    assert restored(doors, bound, "", "task(other-)")["job"] == "", "and nobody else sees it"
    second = compared(doors, bound, values, before="")["job"]
    assert jobs.find(first).comparison is None and jobs.find(second).state == "compared", "the latest is held"
    result = merged(doors, bound, values, second)
    assert jobs.find(second).state == "discarded" and jobs.find(second).comparison is None
    bound.keep(result["job"], "pair", "")
    assert restored(doors, bound, result["job"], "task(page-)")["job"] == result["job"], "nothing comes back"
    assert restored(doors, bound, "", "task(page-)")["job"] == ""


def test_comparing_lets_go_of_a_result_and_what_is_refused_does_not(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    jobs = doors.module("jobs")
    result = merged(doors, bound, values)["job"]
    compared(doors, bound, values, before=result, table={"rows": []})
    assert jobs.find(result).state == "finished"
    seen = compared(doors, bound, values, before=result)
    assert jobs.find(result).state == "discarded"
    for act in (bound.keep(seen["job"], "pair", ""), bound.put_back(seen["job"])):
        assert "the merge is compared" in act[0], "there is nothing to keep"
    assert "the merge is compared" in bound.attempt("task(x-1)", seen["job"], *[""] * 9)[1]
    assert "Discarded" in shown(doors, bound.discard(seen["job"]))["view"]


def test_reload_ui_stops_it_and_what_was_compared_waits_on(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bound, values = tab(doors)
    jobs, start = doors.module("jobs"), doors.module("start")
    comparison = doors.module("comparison")
    outcome_of = comparison.outcome_of
    server = SimpleNamespace(should_exit=False)
    doors.webui.shared.demo = SimpleNamespace(server=server)

    def closing(several: Any, method: str, options: Any) -> Outcome:
        if method == "ridge":
            server.should_exit = True
        return outcome_of(several, method, options)

    monkeypatch.setattr(comparison, "outcome_of", closing)
    assert "Interrupted" in compared(doors, bound, values)["view"]
    start.end_former()
    told = bound.restore("", "task(page-)")
    assert "The comparison of fox, penguin was stopped by Reload UI" in told[0]
    picked, _, draw, *given = json.loads(told[-1])
    assert "press Compare methods" in told[0] and picked[0] == "fox" and len(picked) == 2 and not draw
    assert given == values, "the form is filled in again"
    monkeypatch.setattr(comparison, "outcome_of", outcome_of)
    server.should_exit = False
    held = compared(doors, bound, values)["job"]
    start.end_former()
    assert restored(doors, bound, "", "task(page-)")["job"] == held == jobs.waiting("page").id


def test_what_strangers_write_is_text(doors: Doors) -> None:  # noqa: F811
    hostile = "<img src=x onerror=alert(1)>'\""
    found = doors.module("comparison").Comparison(
        (hostile,),
        (Outcome(Made("average", {}, 1.0, {}), Retention((0.5,), None), 1.0),),
        {"average": b"x"},
        {"TIES": hostile},
        (hostile,),
    )
    view = doors.module("comparison_view").view(found)
    assert "<img src=x" not in view and view.count("&lt;img src=x") == 3 and "n/a" in view


def test_how_long_it_takes_is_said_beside_it(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    assert bound.comparing_takes(["fox"], False, *values, []) == "", "one LoRA is nothing to compare on"
    told = bound.comparing_takes(CHOSEN, False, *values, SOME)
    assert "4 methods: " in told and "from one recording" in told
    assert "One method: " in bound.comparing_takes(CHOSEN, False, *values, SOME[:1])
    assert f"{len(bound.comparable()['choices'])} methods: " in bound.comparing_takes(CHOSEN, False, *values, [])
    wrong = {**dict(zip(bound._names, values, strict=True)), "seed": None}
    assert bound.comparing_takes(CHOSEN, False, *wrong.values(), SOME) == ""


def test_each_method_more_and_pictures_take_longer_but_one_recording_is_enough(doors: Doors) -> None:  # noqa: F811
    estimate, form, rows_ = doors.module("estimate"), doors.module("form"), doors.module("rows")
    bound, values = tab(doors)
    compared(doors, bound, values, ["Average"])  # which measures the pace
    request, _ = form.build(rows_.Table.parse(json.dumps(TABLE)), dict(zip(bound._names, values, strict=True)))
    host = doors.module("comparison").running.peek()
    one = {"ridge": {}}
    two = {"ridge": {}, "paper": {}}

    def of(asked: dict[str, Any], *, draw: bool = False) -> list[Stage]:
        return [item.stage for own in estimate.comparison(request, asked, host, draw=draw) for item in own]

    assert of(one).count(Stage.RECORDING) == of(two).count(Stage.RECORDING) == 1
    assert of(two).count(Stage.UNET_LAYERS) == 2 == of(two).count(Stage.MEASURING)
    assert of(two, draw=True).count(Stage.DRAWING) == 2
    assert of({**two, "average": {}, "ties": {}}, draw=True).count(Stage.DRAWING) == 3


def test_the_clock_knows_of_what_is_still_to_come(doors: Doors) -> None:  # noqa: F811
    clock = doors.module("clock").Clock(
        (),
        {Work.EVALUATION: 1.0, Work.BACKWARD: 4.0, Work.LAYER: 1.0},
    )
    first = [PlannedStage(Stage.RECORDING, 1000, Work.EVALUATION, 1000.0)]
    second = [PlannedStage(Stage.MEASURING, 500, Work.EVALUATION, 500.0)]
    third = [
        PlannedStage(Stage.MEASURING, 300, Work.EVALUATION, 300.0),
        PlannedStage(Stage.UNET_LAYERS, 90, Work.LAYER, 90.0),
    ]
    clock.begin(first, [*second, *third], 0.0)
    assert clock.remaining(0.0) == 1890
    clock.start(Stage.RECORDING, 0.0)
    clock.advance(
        0.5, 1500.0
    )  # three times as slow as expected, and so will be what follows; layers are no evaluations
    assert clock.remaining(1500.0) == pytest.approx(3 * (500 + 500 + 300) + 90, rel=0.01)
    clock.begin(second, third, 3000.0)  # it ended early, and what was seen is still believed
    assert clock.remaining(3000.0) == pytest.approx(6 * (500 + 300) + 90, rel=0.01)
    clock.start(Stage.MEASURING, 3000.0)
    clock.advance(1.0, 6000.0)
    clock.begin(third, [], 6000.0)
    assert clock.remaining(6000.0) == pytest.approx(6 * 300 + 90, rel=0.01)
