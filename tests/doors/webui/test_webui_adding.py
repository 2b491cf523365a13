"""Concepts that are added to a merged LoRA, in the tab and over HTTP, on the stand-in."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from test_webui_queue import enqueue, over
from test_webui_routes import Client, client  # noqa: F401  (a fixture)
from webui_doors import SMALL, Doors, doors  # noqa: F401  (a fixture)
from webui_tab import shown, tab

from lib_loraclr.files.tensor_files import read_header
from lib_loraclr.merge.start import Finished
from lib_loraclr.output.saving import read_recipe

SHORT = {"method": "contrastive", "effort": "Fast", "option.contrastive.steps": 4, "rank": "4", "precision": "fp32"}
NEW = "owl"


def table(*names: str) -> str:
    return json.dumps({"rows": [{"lora": name, "trigger": f"{name} words"} for name in names]})


def listed(doors: Doors, name: str) -> Path:  # noqa: F811
    """A file that was written is known to the WebUI with what stands in it."""
    path = doors.folder / f"{name}.safetensors"
    doors.webui.networks.metadata[name] = dict(read_header(path).metadata)
    doors.webui.networks.list_available_networks()
    return path


@pytest.fixture
def trio(doors: Doors) -> Any:  # noqa: F811
    """A merge of three, kept under this name; it is returned. A fourth LoRA is installed."""
    doors.lora("cat")
    doors.lora(NEW)
    bound, values = tab(doors, **SHORT)
    names = ["fox", "penguin", "cat"]
    job_id = shown(doors, bound.merge("", table(*names), names, "", False, *values))["job"]
    merge = doors.module("jobs").find(job_id).result.merge
    known = bound.keep(job_id, "trio", "")[-1]
    assert json.loads(known)["name"] == "trio"
    listed(doors, "trio")
    return merge


ALL = ("fox", "penguin", "cat", NEW)


def test_the_form_is_filled_with_what_is_in_it_and_what_is_chosen_stays(doors: Doors, trio: Any) -> None:  # noqa: F811
    bound, values = tab(doors, add_to="")
    rows = doors.module("rows")
    for name, offered in (("trio", True), ("fox", False)):
        chosen = rows.selected([name], rows.Table(), rows.Table())
        assert ("loraclr-add-to' data-lora='trio'" in rows.render(chosen, rows.found(chosen.rows))) is offered
    picker, taken, message, *fields = bound.add_to("trio", ["trio", NEW])
    assert [re.split(r"[/ ]", name)[0] for name in picker["value"]] == [
        "fox",
        "animals",
        "cat",
        "owl",
    ] and message == ""
    assert [row["trigger"] for row in json.loads(taken)["rows"]] == ["fox words", "penguin words", "cat words"]
    filled = dict(zip(bound._names, fields, strict=True))
    assert (filled["add_to"], filled["effort"], filled["option.contrastive.steps"]) == ("trio", "Fast", 4)
    assert bound.add_to_kept(json.dumps({"name": "trio"}), [NEW])[0] == picker
    line = bound.adding("trio")
    assert "Adds to <b>trio</b>" in line and "cat, fox, penguin" in line and bound.adding("") == ""
    assert bound.add_to_nothing() == ["", ""]
    entry = doors.module("history").entries()[0]
    assert dict(zip(bound._names, bound.again(entry.id)[3:], strict=True))["add_to"] == "", (
        "filled in to be merged afresh"
    )


def test_check_says_how_many_steps_are_left_and_a_merge_what_it_went_on_from(doors: Doors, trio: Any) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors, **SHORT, add_to="trio")
    view, efforts = bound.check("", table(*ALL), [*ALL], "", False, *values)
    assert "Goes on from trio: 3 steps in place of 4." in view
    assert dict(map(reversed, efforts["choices"])).keys() == {"Layers", "Fast", "Balanced", "Thorough"}
    assert [label for label, value in efforts["choices"] if value == "Layers"] == ["Layers"], (
        "it cannot be gone on with"
    )
    seen = shown(doors, bound.merge("", table(*ALL), [*ALL], "", False, *values))
    job = jobs.find(seen["job"])
    assert (
        "Went on from" in seen["view"] and ">trio<" in seen["view"] and "3 steps were made from there" in seen["view"]
    )
    assert {item.stage for item in job.progress.planned} == set(job.progress.seconds), "planned as it was done"
    merge = job.result.merge
    assert set(merge.begun.concepts) == {"fox", "penguin", "cat"}
    assert merge.begun.hash == Finished(trio.factors, frozenset()).hash, "of the file's own numbers"
    assert merge.report.refinement["steps"] <= 3 and [told.name for told in merge.report.concepts] == [*ALL]
    bound.keep(seen["job"], "more", "")
    assert "loraclr.begun" in read_header(doors.folder / "more.safetensors").metadata
    # control: the same rows merged afresh
    _, afresh = tab(doors, **SHORT, add_to="")
    assert "Goes on from" not in bound.check("", table(*ALL), [*ALL], "", False, *afresh)[0]
    other = shown(doors, bound.merge("", table(*ALL), [*ALL], "", False, *afresh))
    assert "Went on from" not in other["view"] and jobs.find(other["job"]).result.merge.begun is None


def test_times_count_what_is_new_and_the_queue_adds_too(doors: Doors, trio: Any) -> None:  # noqa: F811
    jobs, estimate = doors.module("jobs"), doors.module("estimate")
    bound, values = tab(doors, **SHORT, add_to="trio")
    seen: list[Any] = []
    original = estimate.efforts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "efforts", lambda *given, **named: seen.append(named) or original(*given, **named))
        bound.times([*ALL], False, *values)
    assert seen[0]["start"].labels == {"fox", "penguin", "cat"}
    assert enqueue(bound, values, "night", table=json.loads(table(*ALL)))[0].count("which is not chosen any more") == 1
    message, *_ = bound.enqueue("task(page-)", table(*ALL), [*ALL], "night", False, *values)
    assert message == ""
    over(doors)
    [job] = jobs.of_owner("page")
    assert job.state == "kept" and job.went_on_from == "trio"


@pytest.mark.parametrize(
    ("names", "changes", "told"),
    [
        (
            ("fox", "penguin", NEW),
            {},
            "trio holds cat, which is not chosen any more: choose it again, or merge afresh.",
        ),
        (("fox", "penguin", "cat"), {}, "Nothing is chosen to add to trio: choose at least one LoRA more."),
        (ALL, {"effort": "Layers"}, "gone on from with a refinement"),
        (ALL, {"method": "average"}, "gone on from with a refinement"),
        (ALL, {"add_to": "nobody"}, "no installed LoRA &#x27;nobody&#x27;"),
        (ALL, {"add_to": "fox"}, "fox holds no LoRACLR recipe: name a file that LoRACLR merged."),
    ],
)
def test_what_cannot_be_added_is_said(
    doors: Doors,  # noqa: F811
    trio: Any,
    names: tuple[str, ...],
    changes: dict[str, Any],
    told: str,
) -> None:
    bound, values = tab(doors, **{**SHORT, "add_to": "trio", **changes})
    for html in (
        bound.check("", table(*names), [*names], "", False, *values)[0],
        shown(doors, bound.merge("", table(*names), [*names], "", False, *values))["view"],
    ):
        assert told in html and str(doors.folder) not in html


def test_a_lora_that_is_gone_or_was_changed_is_named(doors: Doors, trio: Any) -> None:  # noqa: F811
    bound, values = tab(doors, **SHORT, add_to="trio")
    doors.lora("cat", seed=99)
    missing = (
        "trio was made from cat.safetensors, but another file of that name is there: install that one, or merge afresh."
    )
    assert missing in bound.add_to("trio", [])[2]
    (doors.folder / "cat.safetensors").unlink()
    doors.webui.networks.list_available_networks()
    missing = missing.replace("another file of that name is there", "it is not there")
    answer = bound.add_to("trio", [])
    assert missing in answer[2] and len(answer) == 3 + len(values)
    assert missing in shown(doors, bound.merge("", table("fox", NEW), ["fox", NEW], "", False, *values))["view"]


def test_over_http_the_request_has_what_is_new_and_the_recipe_the_rest(client: Client) -> None:  # noqa: F811
    recording = SMALL["recording"]
    options = {"method": "contrastive", "options": {"effort": "fast", "steps": 2}, "rank": "4", "recording": recording}
    job = client.merged(**options, seed=5)
    client.ask("POST", f"/jobs/{job}/keep", {"name": "pair"})
    listed(client.doors, "pair")
    client.doors.lora(NEW)
    added = {"add_to": "pair", "request": {"concepts": [{"lora": NEW, "trigger": "hoot"}]}, "preview": False}
    status, found = client.ask("POST", "/check", added)
    assert (status, found["added_to"], found["steps"]) == (200, "pair", [2, 2])
    assert [finding["name"] for finding in found["findings"]] == ["fox", "penguin", NEW]
    assert set(found["efforts"]) == {"fast", "balanced", "thorough"}
    _, answer = client.ask("POST", "/merge", added)
    end = time.monotonic() + 60
    while client.ask("GET", f"/jobs/{answer['id']}")[1]["state"] in ("queued", "running") and time.monotonic() < end:
        time.sleep(0.05)
    told = client.ask("GET", f"/jobs/{answer['id']}")[1]
    assert (told["state"], told["add_to"], told["loras"]) == ("finished", "pair", ["fox", "penguin", NEW])
    assert client.ask("GET", f"/jobs/{job}")[1]["add_to"] is None
    assert client.ask("GET", f"/jobs/{answer['id']}/result?preview=false")[1]["seed"] == 5, "as the recipe has it"
    client.ask("POST", f"/jobs/{answer['id']}/keep", {"name": "three"})
    request, _ = read_recipe(read_header(client.doors.folder / "three.safetensors").metadata, "three")
    assert request.options["steps"] == 2 and [concept.label for concept in request.concepts] == ["fox", "penguin", NEW]
    for body, message in (
        ({**added, "request": {"concepts": []}}, "Nothing is chosen to add to pair"),
        ({**added, "add_to": "fox"}, "fox holds no LoRACLR recipe"),
        ({**added, "request": {"concepts": "owl"}}, "give a list"),
        ({**added, "request": {**added["request"], "options": {"effort": "layers"}}}, "gone on from with a refinement"),
    ):
        for path in ("/check", "/merge"):
            status, answer = client.ask("POST", path, body)
            assert status == 400 and message in answer["detail"]
