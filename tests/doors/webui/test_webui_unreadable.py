"""What the tab shows of files that cannot be read, and of trigger words that are a guess."""

from __future__ import annotations

import json

from webui_doors import Doors, doors  # noqa: F401  (a fixture)


def test_a_file_that_cannot_be_read_is_one_marked_choice_and_row(doors: Doors) -> None:  # noqa: F811
    catalogue, rows = doors.module("catalogue"), doors.module("rows")
    (doors.folder / "fox.safetensors").write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    assert catalogue.choices(rescan=True) == ["animals/penguin  ·  pingu", "big  ·  ⚠ SDXL", "fox  ·  ⚠ unreadable"]
    table = rows.selected(["fox", "penguin"], rows.Table(), rows.Table())
    html = rows.render(table, rows.found(table.rows))
    assert (
        html.count("loraclr-bad'") == 1
        and html.count(">unreadable<") == 1
        and "Cannot be merged: the file is a web page" in html
    )


def test_a_guess_is_marked_with_where_it_comes_from(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    tied = {"10_lily": {"apron": 9, "lilyfield": 9}}
    doors.lora("tied", ss_tag_frequency=json.dumps(tied))
    doors.lora("alone", ss_tag_frequency=json.dumps({"10_lily": {"lilyfield": 9, "1girl": 9}}))
    table = rows.selected(["fox", "penguin", "tied", "alone"], rows.Table(), rows.Table())
    assert [row["trigger"] for row in table.rows] == ["sks animal", "penguin", "apron", "lilyfield"]
    marked = {
        part.partition("'")[0]: part
        for part in rows.render(table, rows.found(table.rows)).split("data-lora='")[1:]
        if "loraclr-guess" in part
    }
    assert set(marked) == {"penguin", "tied"}
    assert "its file name is taken" in marked["penguin"] and "a tag of its captions (apron)" in marked["tied"]


def test_the_list_over_http_marks_guesses(doors: Doors) -> None:  # noqa: F811
    routes = doors.module("routes")
    listed = {lora["name"]: lora for lora in routes.loras()}
    assert (listed["penguin"]["trigger"], listed["penguin"]["trigger_is_guess"]) == ("penguin", True)
    assert (listed["fox"]["trigger"], listed["fox"]["trigger_is_guess"]) == ("sks animal", False)
