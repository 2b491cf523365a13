"""Who will be in whose way, as Check tells it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, tab

from lib_loraclr.merge.overlap import Overlap
from lib_loraclr.progress import Work


def checked(doors: Doors, **changes: Any) -> str:  # noqa: F811
    bound, values = tab(doors, method="contrastive", **changes)
    return bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[0]


def test_check_has_a_table_and_a_sentence_and_asks_the_model_once(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overlaps = doors.module("overlaps")
    measure, calls = overlaps.measure_overlap, []
    monkeypatch.setattr(overlaps, "measure_overlap", lambda *a, **k: calls.append(k["paths"]) or measure(*a, **k))
    view = checked(doors)
    assert "In each other's way" in view and "with both tags in one prompt" in view and "<th>fox</th>" in view
    assert calls == [2] and not doors.webui.shared.state.job
    assert checked(doors) == view and calls == [2], "the same again costs nothing"
    checked(doors, seed=4.0)
    doors.lora("fox", seed=99)
    checked(doors, seed=4.0)
    assert calls == [2, 2, 2], "another seed, and a file that was written anew"


def test_where_it_would_take_long_or_the_model_is_busy_the_reason_is_said(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overlaps = doors.module("overlaps")
    pace = overlaps.pace
    for each, paths, told in ((0.1, 2, ""), (0.5, 1, ""), (9.0, None, "that would take 5 min here")):
        asked: list[int] = []
        monkeypatch.setattr(pace, "seconds_per_unit", lambda _, each=each: dict.fromkeys(Work, each))
        monkeypatch.setattr(
            overlaps, "measure_overlap", lambda *_, paths, asked=asked: asked.append(paths) or Overlap(("fox",), {})
        )
        overlaps._latest.clear()
        view = checked(doors)
        assert asked == ([paths] if paths else []) and told in view
    monkeypatch.setattr(pace, "seconds_per_unit", lambda _: dict.fromkeys(Work, 0.1))
    doors.webui.shared.state.job = "txt2img"
    assert "as a picture is being made" in checked(doors)


def test_what_cannot_be_merged_and_a_lora_alone_are_not_asked(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    overlaps = doors.module("overlaps")
    monkeypatch.delattr(overlaps, "measure_overlap")
    same = {"rows": [{"lora": name, "trigger": "ohwx"} for name in CHOSEN]}
    bound, values = tab(doors, method="contrastive")
    assert "have the same prompts" in bound.check("", json.dumps(same), CHOSEN, "", False, *values)[0]
    alone = {"rows": [{"lora": "fox", "trigger": "ohwx"}]}
    view = bound.check("", json.dumps(alone), ["fox"], "", False, *values)[0]
    assert "In each other" not in view and "way was not looked at" not in view


def test_the_sentence_goes_by_the_table(doors: Doors) -> None:  # noqa: F811
    overlaps = doors.module("overlaps")
    one = Overlap(("<a>", "b"), {("<a>", "b"): 1.24, ("b", "<a>"): 0.5})
    assert overlaps.sentence(one) == "<a> needs the merge most: with both tags in one prompt, b leaves nothing."
    view = overlaps.view(one, "")
    assert (
        "loraclr-moved-much" in view and "loraclr-moved-somewhat" in view and "&lt;a&gt;" in view and "<a>" not in view
    )
    other = Overlap(("a", "b"), {("a", "b"): 1.24, ("b", "a"): 0.9})
    assert overlaps.sentence(other).endswith("b leaves nothing. Of b, a leaves about 10%.")
    none = Overlap(("a", "b"), {("a", "b"): 0.2, ("b", "a"): 0.1})
    assert "would do nearly as well" in overlaps.sentence(none)
