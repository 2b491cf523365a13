"""The report as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from lib_loraclr.output.report import ConceptReport, MergeReport, advice, figure, format_table
from lib_loraclr.request.merge_request import Concept, MergeRequest

REPORT = MergeReport(
    "contrastive",
    "LoRACLR, arXiv 2412.09622",
    (ConceptReport("fox-face", "sks animal", -0.98765, 0.5), ConceptReport("mono", "", 0.25, None)),
    base_drift_all_tags=1.5,
    base_drift=0.75,
    refinement={"reason": "steps", "steps": 100},
    warnings=("mono: „1 key“ is not understood",),
)


def test_the_table_has_a_row_per_concept_and_one_for_the_base() -> None:
    assert REPORT.table().splitlines() == [
        "concept     trigger     all tags  merged  recognised  verdict",
        "----------  ----------  --------  ------  ----------  -------",
        "fox-face    sks animal    -0.988   0.500         n/a",
        "mono        (none)         0.250     n/a         n/a",
        "base drift                 1.500   0.750",
    ]


def test_a_guess_is_marked_as_one() -> None:
    guess = replace(REPORT.concepts[0], trigger_is_guess=True)
    rows = replace(REPORT, concepts=(guess, REPORT.concepts[1])).table().splitlines()
    assert "sks animal (guessed)" in rows[2] and "guessed" not in rows[3]


def test_there_is_no_row_for_a_base_drift_that_was_not_measured() -> None:
    assert "base drift" not in replace(REPORT, base_drift=None, base_drift_all_tags=None).table()


def test_the_drift_of_all_tags_is_shown_even_where_nothing_was_merged() -> None:
    """What `measure` without a merged file reports."""
    assert replace(REPORT, base_drift=None).table().splitlines()[-1].split() == ["base", "drift", "1.500", "n/a"]


def test_a_figure_that_could_not_be_measured_is_not_shown_as_a_number() -> None:
    assert figure(None) == "n/a"
    assert figure(0.0) == "0.000"


def test_json_holds_every_field_and_reads_back() -> None:
    read = json.loads(REPORT.to_json())
    assert set(read) == set(MergeReport.__dataclass_fields__)
    mono = {"name": "mono", "trigger": "", "all_tags": 0.25, "merged": None, "loss": 0.0, "left_out": []}
    assert read["concepts"][1] == mono | {"recognised": None, "taken_for": {}, "trigger_is_guess": False}
    assert read["refinement"] == {"reason": "steps", "steps": 100}


def test_json_is_readable_in_any_language() -> None:
    assert "„1 key“" in REPORT.to_json()


def test_columns_are_as_wide_as_their_widest_cell_and_lines_carry_no_trailing_blanks() -> None:
    lines = format_table([("a", "b", "c"), ("longer", "", "1"), ("x", "y", "")]).splitlines()
    assert lines == ["a       b  c", "------  -  -", "longer     1", "x       y"]
    assert format_table([("a", ""), ("b", "")]).splitlines() == ["a", "-", "b"]


def test_json_says_who_is_taken_for_whom_and_how_two_are_drawn_together() -> None:
    fox = replace(REPORT.concepts[0], recognised=0.75, taken_for={"fox-face": 0.75, "mono": 0.125, "": 0.125})
    seen = replace(REPORT, concepts=(fox, REPORT.concepts[1]), together=(("fox-face", "mono", 0.5),))
    read = json.loads(seen.to_json())
    assert read["concepts"][0]["recognised"] == 0.75
    assert read["concepts"][0]["taken_for"] == {"fox-face": 0.75, "mono": 0.125, "": 0.125}
    assert read["together"] == [["fox-face", "mono", 0.5]]
    assert seen.table().splitlines()[2].split()[-2:] == ["75%", "kept"]
    assert "Two in one picture: both are themselves at 50% of unseen points." in seen.table()


def judged(**recognised: float) -> tuple[MergeReport, MergeRequest]:
    told = tuple(
        ConceptReport(name, f"{name} word", 0.0, 0.5, recognised=share, taken_for={name: share, "": 1 - share})
        for name, share in recognised.items()
    )
    concepts = tuple(Concept(f"{name}.safetensors", trigger=f"{name} word") for name in recognised)
    return replace(REPORT, concepts=told), MergeRequest(concepts, method="contrastive")


def test_advice_names_all_that_came_out_as_bad_as_the_worst() -> None:
    assert advice(*judged(fox=1.0, owl=0.8)) == "Every concept is kept."
    one = advice(*judged(fox=1.0, owl=0.5))
    assert one.startswith(
        "owl is weakened: it is recognised in 50% of what was tried, and nothing is drawn instead. Merge"
    )
    several = advice(*judged(fox=0.3, owl=0.1, cat=0.2, dog=0.6))
    assert several.startswith("fox, owl and cat are lost; owl the most: it is recognised in 10% of what was tried")
    assert "dog" not in several, "it is only weakened"
    assert advice(*judged()) == ""
