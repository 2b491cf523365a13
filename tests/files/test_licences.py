"""Authors and licences of what is merged: read, judged by their words, and kept through merges of merges."""

from __future__ import annotations

import json

import pytest

from lib_loraclr.files.licences import CREDITS, Terms, conditions, credit, credit_lines

MERGING, SELLING, SAME, USE = "forbids merging", "forbids selling", "under the same licence", "limits of use"


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("MIT", ()),
        ("CC0-1.0", ()),
        ("CC-BY-4.0", ()),
        ("Apache-2.0", ()),
        ("cc-by-nc-4.0", (SELLING,)),
        ("CC BY-ND 4.0", (MERGING,)),
        ("CC-BY-NC-ND-4.0", (MERGING, SELLING)),
        ("CC BY-NC-SA 4.0", (SELLING, SAME)),
        ("Creative Commons Attribution-NonCommercial-ShareAlike", (SELLING, SAME)),
        ("Attribution-NoDerivatives", (MERGING,)),
        ("GPL-3.0-only", (SAME,)),
        ("AGPL", (SAME,)),
        ("All rights reserved.", (MERGING, SELLING)),
        ("Do not merge, do not sell", (MERGING, SELLING)),
        ("may not be sold", (SELLING,)),
        ("No merges please", (MERGING,)),
        ("for research only", (SELLING,)),
        ("CreativeML Open RAIL-M", (USE,)),
        ("openrail++", (USE,)),
        # words that only look like it
        ("Fundamental licence of Sandy Grandy", ()),
        ("Finance Company", ()),
    ],
)
def test_what_a_licence_asks_is_read_from_its_words(licence: str, said: tuple[str, ...]) -> None:
    found = Terms.of({"modelspec.license": licence}).conditions()
    assert len(found) == len(said) and all(part in text for part, text in zip(said, found, strict=True)), found


def test_a_condition_names_the_lora_and_the_licence() -> None:
    assert conditions("fox", {"modelspec.license": "CC-BY-ND-4.0"}) == [
        "fox is under CC-BY-ND-4.0, which forbids merging it into another file: ask its author before you publish the merge."
    ]
    assert conditions("fox", {}) == []


def test_what_a_merge_was_made_from_keeps_its_author_and_licence() -> None:
    fox = {"modelspec.author": "somebody", "modelspec.license": "CC-BY-NC-4.0"}
    pair = {CREDITS: json.dumps({"fox": credit(fox), "cat": credit({})}), "modelspec.author": "the one who merged"}
    told = credit({CREDITS: json.dumps({"pair": credit(pair)})})
    assert told["made_from"]["pair"]["made_from"]["fox"] == {"author": "somebody", "licence": "CC-BY-NC-4.0"}
    assert credit_lines({"pair": credit(pair)}) == [
        "pair by the one who merged, licence not named",
        "fox (in pair) by somebody, CC-BY-NC-4.0",
        "cat (in pair), licence not named",
    ]
    assert conditions("pair", pair)[0].startswith("fox (in pair) is under CC-BY-NC-4.0, which forbids selling")


def test_a_book_in_the_place_of_a_name_is_cut_to_a_line() -> None:
    terms = Terms.of({"modelspec.author": "a\nb\x1b[31m\u202ec " * 10_000, "modelspec.license": "x" * 10_000})
    assert terms.author.startswith("a b [31m c a b") and len(terms.author) <= 300 and terms.author.isprintable()
    assert len(terms.licence) == 300 and terms.licence.endswith("…")


@pytest.mark.parametrize(
    "text", ["[", "[]", "1", '{"a": 1}', "[" * 200_000, '{"a": {"made_from": {"b": []}}}', '{"": {}}']
)
def test_credits_that_are_none_are_left_out(text: str) -> None:
    told = credit({CREDITS: text})
    assert told.get("made_from", {}) in ({}, {"a": {}})


def test_merges_of_merges_do_not_grow_without_end() -> None:
    metadata: dict[str, str] = {}
    for _ in range(20):
        metadata = {CREDITS: json.dumps({"inner": credit(metadata)})}
    assert metadata[CREDITS].count("inner") <= 5
