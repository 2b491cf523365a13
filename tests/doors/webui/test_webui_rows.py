"""The picker and the table of concepts."""

from __future__ import annotations

import json

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import tab

from lib_loraclr.request.merge_request import Concept

EVIL = "<img src=x onerror=alert(1)>'\""


def test_the_picker_lists_folder_alias_and_a_mark_for_what_does_not_fit(doors: Doors) -> None:  # noqa: F811
    catalogue = doors.module("catalogue")
    assert catalogue.choices() == ["fox", "animals/penguin  ·  pingu", "big  ·  ⚠ SDXL"]
    assert [catalogue.name_of(item) for item in catalogue.choices()] == ["fox", "penguin", "big"]


def test_a_selection_survives_a_new_mark_and_a_deleted_file(doors: Doors) -> None:  # noqa: F811
    catalogue = doors.module("catalogue")
    assert catalogue.still_there(["big", "gone", "fox"], catalogue.choices()) == ["big  ·  ⚠ SDXL", "fox"]


def test_without_a_checkpoint_nothing_is_marked(doors: Doors) -> None:  # noqa: F811
    doors.webui.sd_models.model_data.sd_model = None
    assert doors.module("catalogue").choices() == ["big", "fox", "animals/penguin  ·  pingu"]


def test_from_prompt_takes_weights_and_names_what_is_not_there(doors: Doors) -> None:  # noqa: F811
    catalogue = doors.module("catalogue")
    prompt = "a castle, <lora:fox:0.7>, <lora:pingu:0.5:0.25>, <lora:nobody:1>, at night"
    concepts, words, unknown = catalogue.from_prompt(prompt)
    assert [(c.lora, c.te_weight, c.unet_weight) for c in concepts] == [("fox", 0.7, 0.7), ("penguin", 0.5, 0.25)]
    assert words == "a castle, at night"
    assert unknown == ["There is no LoRA nobody here: its tag was left out."]
    *_, unknown = catalogue.from_prompt("<lora:foxx:1>")
    assert unknown[0].endswith("Did you mean fox?"), "and not a list of all that are installed"


@pytest.mark.parametrize(
    ("prompt", "trigger", "rest"),
    [
        ("sks animal, a castle", "sks animal", "a castle"),
        ("(hatsune miku:1.2), aqua hair, twin tails, night", "hatsune miku, twin tails, aqua hair", "night"),
        ("a photo of Sks Animal at night", "sks animal", "a photo of at night"),
        ("((sks)), [sks], (sks, red:1.1), (blue, sks:1.1), sea", "sks", "(red:1.1), (blue:1.1), sea"),
        ("caterpillar, cat", "cat", "caterpillar"),
        ("a sks and a SKS, at night", "sks", "at night"),
        ("sks and sks in a castle and", "sks", "in a castle"),
        ("a sks with a castle", "sks", "a castle"),
        ("salt and pepper, sks", "sks", "salt and pepper"),
        ("(red:1.2), blue", "sks", "(red:1.2), blue"),
    ],
)
def test_a_concepts_own_words_are_no_other_words(doors: Doors, prompt: str, trigger: str, rest: str) -> None:  # noqa: F811
    assert doors.module("catalogue").without(prompt, [trigger]) == rest


def test_a_long_run_of_blanks_in_a_prompt_is_gone_through_once(doors: Doors) -> None:  # noqa: F811
    """Tried from each of them it would take hours."""
    assert doors.module("catalogue").without("a fox" + " ," * 1_000_000 + "sks", ["sks"]) == "a fox"


def test_a_new_row_has_the_files_trigger_words_and_edits_stay(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    first = rows.selected(["fox", "penguin"], rows.Table(), rows.Table())
    assert [row["trigger"] for row in first.rows] == ["sks animal", "penguin"]
    edited = json.loads(first.dump())
    edited["rows"][0]["te_weight"] = "0.5"
    second = rows.selected(["penguin", "fox", "big"], rows.Table.parse(json.dumps(edited)), rows.Table())
    assert [(row.lora, row["te_weight"]) for row in second.rows] == [("penguin", 1.0), ("fox", "0.5"), ("big", 1.0)]


def test_a_take_over_from_the_prompt_counts_once(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    taken = rows.Table((rows.of_prompt(Concept("fox", 0.7, 0.7)),), "one")
    shown = rows.selected(["fox"], rows.Table((rows.Row("fox"),)), taken)
    assert shown.rows[0]["te_weight"] == 0.7
    later = rows.Table((rows.Row("fox", {"te_weight": "0.2"}),), shown.taken)
    assert rows.selected(["fox"], later, taken).rows[0]["te_weight"] == "0.2"


@pytest.mark.parametrize("text", ["", None, "nonsense", "[]", '{"rows": [{"nobody": 1}]}', '{"rows": 3}'])
def test_what_is_no_table_is_an_empty_one(doors: Doors, text: str | None) -> None:  # noqa: F811
    rows = doors.module("rows")
    assert rows.Table.parse(text) == rows.Table()


def test_everything_from_files_is_escaped(doors: Doors) -> None:  # noqa: F811
    doors.lora("evil", **{"modelspec.trigger_phrase": EVIL, "ss_base_model_version": ""})
    rows = doors.module("rows")
    table = rows.selected(["evil"], rows.Table(), rows.Table())
    table = rows.Table(
        (
            *table.rows,
            rows.Row(EVIL, dict.fromkeys(("te_weight", "unet_weight", "trigger", "importance", "prompts"), EVIL)),
        ),
        EVIL,
    )
    html = rows.render(table, rows.found(table.rows))
    assert "<img" not in html and "'\"" not in html
    assert "&lt;img src=x onerror" in html


def test_half_of_a_character_in_a_file_ends_no_answer_to_a_browser(doors: Doors) -> None:  # noqa: F811
    rows, wording = doors.module("rows"), doors.module("wording")
    html = rows.render(rows.Table((rows.Row("a\ud800", {"trigger": "\udfff"}),)), {})
    assert html.encode() and "a?" in html
    assert wording.plain("no a\ud800") == "no a?"


def test_a_row_that_does_not_fit_says_why(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    table = rows.selected(["big", "gone"], rows.Table(), rows.Table())
    html = rows.render(table, rows.found(table.rows))
    assert "made for SDXL, the loaded checkpoint is SD1" in html
    assert "it is not installed any more" in html


def test_a_weight_is_one_until_it_is_two(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    for unet, apart in (("0.5", False), ("0.50", False), ("0.7", True)):
        row = rows.Row("fox", {"te_weight": "0.5", "unet_weight": unet})
        html = rows.render(rows.Table((row,)), rows.found((row,)))
        assert ("loraclr-apart" in html) is apart and html.count("data-field='unet_weight'") == 1


def test_a_guess_is_called_one_until_somebody_writes_another_word(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    for name, trigger, guessed in (
        ("penguin", "penguin", True),
        ("penguin", "bird", False),
        ("fox", "sks animal", False),
    ):
        row = rows.Row(name, {"trigger": trigger})
        html = rows.render(rows.Table((row,)), rows.found((row,)))
        assert (">guessed<" in html) is guessed
        bound, values = tab(doors)
        table = json.dumps({"rows": [{"lora": name, "trigger": trigger}]})
        assert ("(guessed)" in bound.check("", table, [name], "", False, *values)[0]) is guessed


def test_a_style_has_a_tick_for_each_subject_and_a_subject_has_outfits(doors: Doors) -> None:  # noqa: F811
    rows = doors.module("rows")
    doors.lora("hat", **{"modelspec.trigger_phrase": "ohwx hat"})
    names = ("fox", "hat", "penguin")
    typed = [{"lora": "fox", "outfits": "sks in red\n\nsks in armor"}, {"lora": "hat", "trigger": "ohwx hat"}]
    typed.append({"lora": "penguin", "kind": "style", "trigger": "ink", "applied_to": "fox\nhat"})
    table = rows.Table.parse(json.dumps({"rows": typed}))
    loras = rows.found(table.rows)
    concepts = [row.concept(loras[row.lora]) for row in table.rows]
    assert concepts[0].outfits == ("sks in red", "sks in armor") and concepts[2].applied_to == ("fox", "hat")
    assert [rows.of_concept(c, n).concept(loras[n]) for c, n in zip(concepts, names, strict=True)] == concepts
    typed[2] |= {"applied_to": "fox"}
    html = rows.render(rows.Table.parse(json.dumps({"rows": typed})), loras)
    own = html.split("data-lora='penguin'")[1]
    assert "data-subject='fox'><input type='checkbox' checked>" in own
    assert "data-subject='hat'><input type='checkbox'>" in own and "data-subject='penguin'" not in own
    assert "data-subject='penguin' hidden" in html.split("data-lora='fox'")[1], (
        "a style is no subject, until it is made one"
    )
    subject = rows.Table.parse(json.dumps({"rows": [{**typed[2], "kind": "subject", "outfits": "x"}]})).rows[0]
    assert subject.concept(loras["penguin"]).applied_to == (), "what the row's kind does not show is not sent"
    style = rows.Table.parse(json.dumps({"rows": [{**typed[0], "kind": "style"}]})).rows[0]
    assert style.concept(loras["fox"]).outfits == ()
