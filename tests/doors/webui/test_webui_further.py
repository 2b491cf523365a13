"""A result that is refined further before anybody has kept it, on the stand-in."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import TABLE, let_fail, merged, restored, shown, tab

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.progress import Stage

SHORT = {"method": "contrastive", "effort": "Fast", "option.contrastive.steps": 2, "rank": "4"}


def refined(
    doors: Doors,  # noqa: F811
    bound: Any,
    job_id: str,
    steps: Any = 1.0,
    table: Any = TABLE,
) -> dict[str, Any]:
    return shown(doors, bound.refine("", json.dumps(table), job_id, False, steps))


def test_either_result_can_be_kept_and_both_figures_are_shown(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors, **SHORT)
    first = merged(doors, bound, values)["job"]
    assert not shown(doors, bound.restore("", "")[:-1])["other"]["visible"], "there is no other yet"
    second = refined(doors, bound, first)
    assert second["job"] != first and ">Before<" in second["view"] and second["other"]["visible"]
    one, two = (jobs.find(job_id).result.merge for job_id in (first, second["job"]))
    assert any(not torch.equal(one.factors[key].up, two.factors[key].up) for key in one.factors)
    assert two.report.refinement["steps"] == 1 and two.begun is not None
    back = shown(doors, bound.other(second["job"]))
    assert back["job"] == first and ">Before<" not in back["view"] and back["other"]["visible"]
    assert shown(doors, bound.other(first))["job"] == second["job"], "and forth"
    assert "Kept as" in bound.keep(first, "former", "")[0]
    assert not shown(doors, bound.restore("", "")[:-1])["other"]["visible"]
    assert "Kept as" in bound.keep(second["job"], "latter", "")[0], "and the other as well"
    assert jobs.find(second["job"]).former is None, "nothing is held for what is decided"
    assert "other result is not there" in bound.other(second["job"])[0]


def test_nothing_is_recorded_again(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors, **SHORT)
    first = jobs.find(merged(doors, bound, values)["job"])
    recorded = {Stage.RECORDING, Stage.HOLDING_BACK, Stage.TESTING}
    assert recorded < set(first.progress.seconds), "control: a merge does record"
    asked: list[int] = []
    unet = doors.webui.model.model.diffusion_model
    unet.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])) and None)
    second = jobs.find(refined(doors, bound, first.id)["job"])
    assert not recorded & set(second.progress.seconds) and Stage.REFINING in second.progress.seconds
    assert {item.stage for item in second.progress.planned} == set(second.progress.seconds)
    held, asked[:] = sum(asked), []
    first.result.followed = None
    third = jobs.find(refined(doors, bound, first.id)["job"])
    assert recorded < set(third.progress.seconds), "and again where it is not there any more"
    assert sum(asked) > 2 * held
    assert second.result.merge.report.refinement == third.result.merge.report.refinement


def test_the_latest_recordings_are_held_and_those_before_while_there_is_room(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors, **SHORT)
    first = jobs.find(merged(doors, bound, values)["job"]).result
    second = jobs.find(refined(doors, bound, jobs.waiting().id)["job"]).result
    assert first.followed is second.followed is not None, "one of both"
    doors.webui.shared.opts.loraclr_memory = 0
    newer = jobs.find(merged(doors, bound, values)["job"]).result
    assert newer.followed is not None and second.followed is None
    over_http = jobs.Job(newer.merge.request, ("fox", "penguin"), draw=False, owner="http ")
    jobs.run(over_http, lock_held=False)
    assert over_http.result.followed is None, "nobody can refine it further"


def test_where_one_is_discarded_the_other_is_shown(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors, **SHORT)
    first = merged(doors, bound, values)["job"]
    second = refined(doors, bound, first)["job"]
    seen = shown(doors, bound.discard(second))
    assert seen["job"] == first and "still to be decided on" in seen["log"] and seen["decide"]["visible"]
    assert "Nothing was written" in shown(doors, bound.discard(first))["view"]


def test_the_importance_is_that_of_the_rows_now(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors, **SHORT)
    first = merged(doors, bound, values)["job"]
    rows = {"rows": [{**TABLE["rows"][0], "importance": "3"}, {"lora": "nobody"}]}
    job = doors.module("jobs").find(refined(doors, bound, first, table=rows)["job"])
    assert [concept.importance for concept in job.result.merge.request.concepts] == [3.0, 2.0]
    assert [concept.importance for concept in doors.module("jobs").find(first).request.concepts] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("steps", "importance", "told"),
    [
        (-1.0, "1", "number of steps is -1"),
        (None, "1", "number of steps is None"),
        (1.0, "x", "The importance of fox"),
        (1.0, "0", "The importance of fox is 0.0"),
    ],
)
def test_what_cannot_be_is_said_and_the_result_stays(
    doors: Doors,  # noqa: F811
    steps: Any,
    importance: str,
    told: str,
) -> None:
    bound, values = tab(doors, **SHORT)
    first = merged(doors, bound, values)["job"]
    seen = refined(doors, bound, first, steps, {"rows": [{**TABLE["rows"][0], "importance": importance}]})
    assert seen["job"] == first and told in seen["log"] and seen["decide"]["visible"]


def test_a_result_without_refining_and_one_that_is_gone_are_not_refined(doors: Doors) -> None:  # noqa: F811
    for changes in ({"method": "average"}, {**SHORT, "effort": "Layers"}):
        bound, values = tab(doors, **changes)
        first = merged(doors, bound, values)["job"]
        seen = refined(doors, bound, first)
        assert seen["job"] == first and "merged without refining: merge with effort Fast" in seen["log"]
        bound.discard(first)
        assert "no result to go on from: the merge is discarded" in refined(doors, bound, first)["view"]
    assert "no result any more" in refined(doors, bound, "nobody")["view"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LoraclrError("gone"), "gone"),
        (Interrupted(), "Interrupted. The result before"),
        (OSError("disk"), "OSError: disk"),
    ],
)
def test_whatever_goes_wrong_leaves_the_result(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    bound, values = tab(doors, **SHORT)
    first = merged(doors, bound, values)["job"]
    let_fail(doors, monkeypatch, "making", "refine_further", error)
    seen = refined(doors, bound, first)
    assert seen["job"] == first and told in seen["log"] and not seen["other"]["visible"]
    assert restored(doors, bound, "", "")["job"] == first
