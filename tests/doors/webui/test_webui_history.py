"""The merges that were made here, and the form filled from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import TABLE, fields, merged, tab

from lib_loraclr.output.saving import read_recipe
from lib_loraclr.request.merge_request import MergeRequest


def kept(doors: Doors, name: str, **changes: Any) -> Any:  # noqa: F811
    bound, values = tab(doors, **changes)
    bound.keep(merged(doors, bound, values)["job"], name, "")
    return bound


def requests(doors: Doors) -> list[MergeRequest]:  # noqa: F811
    """What the merges were asked for, the latest first."""
    history = doors.module("history")
    return [history.request_of(entry) for entry in history.entries()]


def log(doors: Doors) -> Path:  # noqa: F811
    return doors.folder.parent / "loraclr-history.json"


def test_what_is_kept_is_listed_with_date_concepts_and_figures(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, values = tab(doors)
    assert "Merges that are kept are listed here" in bound.history()
    bound.discard(merged(doors, bound, values)["job"])
    assert "Merges that are kept" in bound.history(), "what was discarded was not made"
    kept(doors, "one")
    kept(doors, "two", method="weighted_sum")
    view = bound.history()
    assert view.index("two") < view.index("<b>one</b>"), "the latest first"
    [entry, _] = doors.module("history").entries()
    figure = f"{entry.figures['fox']:.0%}"
    assert f"fox {figure}" in view and "penguin" in view and "tiny.safetensors" in view and "deleted" not in view
    assert str(doors.folder.parent) not in log(doors).read_text("utf-8"), "no folder of this computer"
    (doors.folder / "one.safetensors").unlink()
    doors.webui.networks.list_available_networks()
    looked: list[int] = []
    monkeypatch.setattr(doors.webui.networks, "list_available_networks", lambda: looked.append(1))
    assert bound.history().count("deleted") == 1 and not looked, "the folders are not looked at for it"


def test_the_form_is_filled_again_with_all_that_was_asked(doors: Doors) -> None:  # noqa: F811
    jobs, rows = doors.module("jobs"), doors.module("rows")
    asked = {"seed": 77.0, "quality": "8k", "bank": "None", "phrases": "in a hat", "effort": "Fast"}
    bound = kept(doors, "one", method="contrastive", **{"option.contrastive.steps": 1, "rank": "4"}, **asked)
    request = requests(doors)[0]
    picker, taken, message, *values = bound.again(doors.module("history").entries()[0].id)
    assert [name.split("/")[-1].split(" ")[0] for name in picker["value"]] == ["fox", "penguin"] and message == ""
    # filled in and merged again, it is the same request
    filled = dict(zip(fields(), values, strict=True))
    filled |= {name: value for name, value in fields().items() if isinstance(filled[name], dict)}
    again, _ = doors.module("form").build(rows.Table.parse(taken), filled)
    assert [c.label for c in again.concepts] == ["fox", "penguin"]
    told, expected = again.to_dict(), request.to_dict()
    for concept in (*told["concepts"], *expected["concepts"]):
        concept.pop("lora")
    assert told == expected and told["seed"] == 77 and told["options"]["steps"] == 1
    assert jobs.waiting() is None, "nothing was merged for that"


def test_a_file_that_was_merged_elsewhere_is_listed_by_its_recipe(doors: Doors) -> None:  # noqa: F811
    bound = kept(doors, "one", seed=5.0)
    log(doors).unlink()
    recipe = {"loraclr.request": json.dumps(_request("fox")), "loraclr.checkpoint": "other.safetensors"}
    doors.lora("foreign", **recipe)
    doors.lora("broken", **{"loraclr.request": "{"})
    [entry] = doors.module("history").entries()
    assert (entry.name, entry.checkpoint, entry.id) == ("foreign", "other.safetensors", "file foreign")
    assert "foreign" in bound.history() and "broken" not in bound.history()
    picker, taken, message, *_ = bound.again(entry.id)
    assert picker["value"] == ["fox"] and "gone is not installed any more" in message
    assert doors.module("rows").Table.parse(taken).rows[0]["te_weight"] == 0.25


def _request(lora: str) -> dict[str, Any]:
    return {"concepts": [{"lora": f"{lora}.safetensors", "te_weight": 0.25}, {"lora": "gone.safetensors"}]}


def test_what_the_tab_has_no_field_for_is_named(doors: Doors) -> None:  # noqa: F811
    recipe = {"concepts": [{"lora": "fox.safetensors", "dyn": 3}], "recording": {"clip_skip": 2}, "method": "ties"}
    doors.lora("foreign", **{"loraclr.request": json.dumps(recipe)})
    _, _, message, *values = tab(doors)[0].again("file foreign")
    assert "dyn=3 of fox" in message and "clip skip 2" in message and "the method ties" in message
    assert dict(zip(fields(), values, strict=True))["method"] == "contrastive"


def test_what_is_put_back_was_not_made_and_what_is_replaced_is_listed_once(doors: Doors) -> None:  # noqa: F811
    bound = kept(doors, "one", seed=1.0)
    _, values = tab(doors, seed=2.0)
    job_id = merged(doors, bound, values)["job"]
    bound.replace(job_id, "one", "")
    assert [request.seed for request in requests(doors)] == [2]
    bound.put_back(job_id)
    assert [request.seed for request in requests(doors)] == [1]


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[" * 100_000])
def test_a_log_that_cannot_be_read_is_in_nobodys_way(doors: Doors, text: str) -> None:  # noqa: F811
    log(doors).write_text(text, "utf-8")
    bound = kept(doors, "one")
    assert "one" in bound.history() and "history begins anew" in str(doors.reported)
    assert json.loads(log(doors).read_text("utf-8"))[0]["name"] == "one"


@pytest.mark.parametrize(
    "wrong",
    [
        {"date": "yesterday"},
        {"date": 1e300},
        {"date": float("nan")},
        {"date": True},
        {"figures": ["fox"]},
        {"figures": {"fox": "well"}},
        {"recipe": []},
        {"name": None},
        {"of a newer version": 1},
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_read_is_left_out_and_the_others_are_listed(
    doors: Doors,  # noqa: F811
    wrong: dict[str, Any],
) -> None:
    bound = kept(doors, "one")
    [good] = json.loads(log(doors).read_text("utf-8"))
    log(doors).write_text(json.dumps([{**good, "id": "other", "name": "wrong", **wrong}, good, 7]), "utf-8")
    view = bound.history()
    assert "<b>one</b>" in view and "<b>wrong</b>" not in view and view.count("loraclr-made") == 1
    assert not doors.reported


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"method": "nobody's"}, "method"),
        ({"prompts": {"bank": "nobody's"}}, "bank of phrases"),
        ({"options": {"of a newer version": 1}}, "option"),
        ({"seed": -5}, "seed"),
        ({"concepts": 1}, "concepts"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_asked_for_again_is_said(doors: Doors, wrong: dict[str, Any], told: str) -> None:  # noqa: F811
    doors.lora("foreign", **{"loraclr.request": json.dumps(_request("fox") | wrong)})
    kept(doors, "one")
    entries = json.loads(log(doors).read_text("utf-8"))
    entries[0]["recipe"] |= wrong
    log(doors).write_text(json.dumps(entries), "utf-8")
    for entry_id in ("file foreign", entries[0]["id"]):
        message = tab(doors)[0].again(entry_id)[2]
        assert "loraclr-error" in message, entry_id
    assert told in message


def test_where_the_log_cannot_be_written_the_merge_is_kept_all_the_same(doors: Doors) -> None:  # noqa: F811
    (doors.folder.parent / "file").write_bytes(b"")
    doors.webui.shared.cmd_opts.ui_settings_file = str(doors.folder.parent / "file" / "config.json")
    kept(doors, "one")
    assert (doors.folder / "one.safetensors").exists() and "could not be written" in str(doors.reported)


def test_the_log_has_an_end(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    history = doors.module("history")
    monkeypatch.setattr(history, "_REMEMBERED", 2)
    for name in ("one", "two", "three"):
        kept(doors, name)
    assert [entry["name"] for entry in json.loads(log(doors).read_text("utf-8"))] == ["two", "three"]
    assert not list(doors.folder.parent.glob("*.tmp"))


def test_a_request_that_was_asked_for_and_one_in_a_file_are_the_same(doors: Doors) -> None:  # noqa: F811
    """The log names LoRAs as the WebUI does, the file by its own: of the same LoRA."""
    kept(doors, "one")
    [entry] = doors.module("history").entries()
    from safetensors import safe_open

    with safe_open(doors.folder / "one.safetensors", "pt") as file:
        recipe, _ = read_recipe(file.metadata(), "one")
    assert entry.request() == recipe == requests(doors)[0]
    assert [row["lora"] for row in TABLE["rows"]] == [concept.label for concept in recipe.concepts]


def test_an_entry_that_is_gone_is_said(doors: Doors) -> None:  # noqa: F811
    answer = tab(doors)[0].again("nobody")
    assert "not in the history any more" in answer[2] and len(answer) == 3 + len(fields())
