"""The bank of phrases: its parts, and what is made of a phrase."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lib_loraclr.request.phrases import (
    ARTICLE,
    BANKS,
    BARE,
    OWN_TEMPLATES,
    PLAIN_TOGETHER,
    SLOT,
    Bank,
    Part,
    Phrase,
    Phrases,
    contains_words,
    part_of,
)
from lib_loraclr.request.prompts import TEMPLATES

ROOT = Path(__file__).parents[2]
TEMPLATE = ("my own {trigger} template",)

every_bank = pytest.mark.parametrize("name", sorted(BANKS))
every_part = pytest.mark.parametrize("part", Part, ids=lambda part: part.value)


def kinds(bank: Bank) -> dict[str, Sequence[str]]:
    """All that the bank divides, by kind."""
    return {"forms": bank.forms, "things": bank.things, **bank.words}


def phrases(bank: str, part: Part, *, templates: Sequence[str] = TEMPLATE, seed: int = 0, **changes) -> Phrases:
    return Phrases(bank, part, templates=templates, seed=seed, **changes)


def draws(bank: str, part: Part, count: int = 600, **changes) -> list[Phrase]:
    source = phrases(bank, part, **changes)
    return [source.draw() for _ in range(count)]


def words_in(phrase: Phrase, bank: Bank) -> Iterator[str]:
    """Those of a bank's words that a phrase ends with, one after the other."""
    rest = phrase.after
    known = sorted({words for kind in bank.words.values() for words in kind}, key=len, reverse=True)
    while rest:
        found = next(words for words in known if rest.startswith((f" {words}", f"{bank.joint}{words}")))
        yield found
        rest = rest.removeprefix(f" {found}").removeprefix(f"{bank.joint}{found}")


def without_article(form: str) -> str:
    """The bank's own form of one that an article was put into."""
    return re.sub(r"(^|of )a \{\}", r"\1{}", form)


@every_bank
def test_parts_are_disjoint_and_cover_the_bank(name: str) -> None:
    for kind, all_of in kinds(BANKS[name]).items():
        parts = {part: {phrase for phrase in all_of if part_of(phrase) is part} for part in Part}
        assert set().union(*parts.values()) == set(all_of), kind
        assert sum(map(len, parts.values())) == len(set(all_of)) == len(all_of), kind
        assert len(parts[Part.LEARN]) >= len(all_of) / 2, f"most of {kind} is learnt from"
        if kind != "things":
            assert parts[Part.MEASURE], f"there is something of {kind} to measure on"


def test_the_part_is_that_of_the_texts_checksum() -> None:
    for bank in BANKS.values():
        for all_of in kinds(bank).values():
            for phrase in all_of:
                place = zlib.crc32(phrase.encode("utf-8")) % 16
                expected = Part.STOP if place in (0, 1) else Part.MEASURE if place in (2, 3, 4) else Part.LEARN
                assert part_of(phrase) is expected


def test_the_parts_and_the_draws_are_the_same_in_every_process() -> None:
    """Whatever the process hashes text by; `hash` would divide the bank anew in each."""
    code = (
        "from lib_loraclr.request.phrases import *\n"
        "p = Phrases('photo', Part.LEARN, templates=['a {trigger}'], added=['x', 'y'], seed=3)\n"
        "print([p.draw() for _ in range(50)], [part_of(f) for f in BANKS['booru'].forms])\n"
        "import sys; print(hash('text'), file=sys.stderr)\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""
    assert runs[0].stderr != runs[1].stderr, "control: text is hashed otherwise"


@every_bank
@every_part
def test_only_phrases_of_the_part_are_drawn_but_of_kinds_that_have_none(name: str, part: Part) -> None:
    bank = BANKS[name]
    fall_back = {kind for kind, all_of in kinds(bank).items() if not any(part_of(phrase) is part for phrase in all_of)}
    for phrase in draws(name, part):
        form = without_article(phrase.form)
        if form not in (TEMPLATE[0].replace("{trigger}", SLOT), SLOT):  # what has no form is in every part
            assert form in bank.forms and part_of(form) is part
        assert part_of(phrase.thing) is (Part.LEARN if "things" in fall_back else part)
        assert phrase.thing in bank.things
        for words in words_in(phrase, bank):
            (kind,) = (kind for kind, all_of in bank.words.items() if words in all_of)
            assert part_of(words) is (Part.LEARN if kind in fall_back else part)
    assert not fall_back or (name, part) == ("booru", Part.STOP), "no kind is so small that it is in every part"


@every_bank
def test_what_is_measured_on_is_in_no_prompt_that_is_learnt_from_and_the_other_way_round(name: str) -> None:
    asked = {part: {phrase.asking("zwx") for phrase in draws(name, part, 1000)} for part in Part}
    assert len(asked[Part.LEARN]) > 300
    held_out = [words for kind in BANKS[name].words.values() for words in kind if part_of(words) is not Part.LEARN]
    after = {part: [words for p in draws(name, part) for words in words_in(p, BANKS[name])] for part in Part}
    assert not set(after[Part.LEARN]) & set(held_out)
    assert not set(after[Part.MEASURE]) & set(after[Part.LEARN])
    forms = {part: {without_article(phrase.form) for phrase in draws(name, part)} - {SLOT} for part in Part}
    assert not forms[Part.MEASURE] & (forms[Part.LEARN] | forms[Part.STOP])
    assert not (asked[Part.MEASURE] - {"zwx", "a zwx"}) & asked[Part.LEARN]


@every_bank
def test_in_time_everything_of_a_part_is_drawn(name: str) -> None:
    found = draws(name, Part.LEARN, 4000)
    learnt = {SLOT, *(phrase for phrase in BANKS[name].forms if part_of(phrase) is Part.LEARN)}
    own = TEMPLATE[0].replace("{trigger}", SLOT)
    assert learnt == {without_article(phrase.form) for phrase in found} - {own}
    assert learnt <= {phrase.form for phrase in found}, "without an article too"
    words = {words for kind in BANKS[name].words.values() for words in kind if part_of(words) is Part.LEARN}
    assert words == {words for phrase in found for words in words_in(phrase, BANKS[name])}
    assert set(BANKS[name].joints) == {phrase.joint for phrase in found}


@every_bank
@pytest.mark.parametrize("seed", [0, 1])
def test_of_each_kind_at_most_one_follows(name: str, seed: int) -> None:
    bank, counts = BANKS[name], []
    for phrase in draws(name, Part.LEARN, seed=seed):
        found = [kind for words in words_in(phrase, bank) for kind, all_of in bank.words.items() if words in all_of]
        assert len(found) == len(set(found)) <= 2
        counts.append(len(found))
    assert set(counts) == {0, 1, 2}
    for count, sixteenths in ((0, 3), (1, 11), (2, 2)):
        assert counts.count(count) / len(counts) == pytest.approx(sixteenths / 16, abs=0.05)


def test_a_seed_and_a_part_decide_what_is_drawn() -> None:
    assert draws("photo", Part.LEARN, 50) == draws("photo", Part.LEARN, 50)
    assert draws("photo", Part.LEARN, 50) != draws("photo", Part.LEARN, 50, seed=1)


@every_part
def test_a_persons_templates_are_learnt_from_only(part: Part) -> None:
    own = [phrase.form == "my own {} template" for phrase in draws("photo", part)]
    share = sum(own) / len(own)
    assert share == pytest.approx(OWN_TEMPLATES, abs=0.07) if part is Part.LEARN else share == 0


@pytest.mark.parametrize("part", [Part.STOP, Part.MEASURE], ids=lambda part: part.value)
@every_bank
def test_so_many_have_no_form_and_so_many_an_article(name: str, part: Part) -> None:
    bank, found = BANKS[name], draws(name, part, 3000)
    own = [form for form in bank.forms if part_of(form) is part]
    bare = sum(without_article(phrase.form) == SLOT for phrase in found) / len(found)
    # the bank has one without anything among its forms, which some part draws besides
    assert bare == pytest.approx(BARE + (1 - BARE) * own.count(SLOT) / len(own), abs=0.04)
    open_to_one = [phrase.form for phrase in found if "the {}" not in phrase.form]
    given = sum("a {}" in form for form in open_to_one) / len(open_to_one)
    assert given == pytest.approx(ARTICLE if bank.articles else 0, abs=0.04)
    plainly = sum(phrase.plain_together for phrase in found) / len(found)
    assert plainly == pytest.approx(PLAIN_TOGETHER, abs=0.04)


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        ("{trigger}, outdoors", {"fox, outdoors", "a fox, outdoors"}),
        ("a photo of {trigger}", {"a photo of fox", "a photo of a fox"}),
        ("a photo of my {trigger}", {"a photo of my fox"}),
        ("a big {trigger}", {"a big fox"}),
        ("photo of the {trigger}", {"photo of the fox"}),
    ],
)
def test_a_persons_template_has_an_article_only_where_one_may_stand(template: str, asked: set[str]) -> None:
    """Its beginning is looked at, since words of the bank follow."""
    own = template.replace("{trigger}", SLOT)
    found = [p for p in draws("photo", Part.LEARN, templates=[template]) if without_article(p.form) == own]
    assert len(found) > 100
    assert {phrase.asking("fox").removesuffix(phrase.after) for phrase in found} == asked


@every_part
def test_without_a_bank_nothing_but_the_templates_is_asked(part: Part) -> None:
    templates = ("a {trigger}", "{trigger}, {trigger}")
    found = draws("none", part, 100, templates=templates)
    assert {phrase.asking("fox") for phrase in found} == {"a fox", "fox, fox"}
    assert {(phrase.after, phrase.thing, phrase.joint) for phrase in found} == {("", "", "{} and {}")}


def test_added_phrases_follow_in_their_own_part_and_of_so_few_that_none_is_all() -> None:
    many = [f"detail {k}" for k in range(60)]
    seen = {
        part: {w for p in draws("photo", part, 3000, added=many) for w in many if p.after.endswith((f", {w}",))}
        for part in Part
    }
    for part in Part:
        assert seen[part] == {w for w in many if part_of(w) is part}
    one = ["in a red dress"]
    for part in Part:
        drawn = draws("photo", part, 3000, added=one)
        assert any(p.after.endswith(" in a red dress") for p in drawn), "no comma before what needs none"


def test_added_phrases_with_a_trigger_are_templates() -> None:
    added = ["{trigger} in a red dress", "on a horse"]
    learnt = draws("photo", Part.LEARN, 1000, added=added)
    assert any(phrase.form == "{} in a red dress" for phrase in learnt)
    for part in Part:
        asked = [phrase.asking("fox") for phrase in draws("photo", part, 1000, added=added)]
        assert not any("{" in text for text in asked)
        assert any("red dress" in text for text in asked) == (part is Part.LEARN)


@every_bank
@every_part
def test_plain_ones_have_none_of_the_banks_forms(name: str, part: Part) -> None:
    source = phrases(name, part)
    plain = {source.draw(plain=True).form for _ in range(300)}
    assert plain <= {"{}", "a {}", "my own {} template"}
    assert ("my own {} template" in plain) == (part is Part.LEARN)
    assert len({phrase.form for phrase in draws(name, part)}) > len(plain), "control: others have"


@every_bank
@every_part
@pytest.mark.parametrize("trigger", ["cat", "Dog", "pixel art", "monochrome", "snow", "city"])
def test_what_contains_a_trigger_is_never_asked(name: str, part: Part, trigger: str) -> None:
    """Where no concept is meant: neither as a thing, nor as a form or words around one."""
    for phrase in draws(name, part, 1000, avoid=[trigger]):
        assert not contains_words(phrase.asking(phrase.thing), trigger)
    without = [phrase.asking(phrase.thing) for p in Part for phrase in draws(name, p, 2000)]
    if (name, trigger) not in (("photo", "monochrome"), ("booru", "pixel art")):
        assert any(contains_words(text, trigger) for text in without), "control: the bank has it"


def test_a_kind_of_which_everything_is_a_trigger_is_left_out() -> None:
    every_light = BANKS["photo"].words["light"]
    for phrase in draws("photo", Part.LEARN, 500, avoid=every_light):
        assert not set(words_in(phrase, BANKS["photo"])) & set(every_light)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("a cat on a mat", "cat", True),
        ("a CAT", "cat", True),
        ("scattered", "cat", False),
        ("a cat's toy", "cat", True),
        ("sks animal, cat", "sks animal", True),
        ("sks animals", "sks animal", False),
        ("a (cat:1.2)", "cat", True),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
        ("anything", "", False),
    ],
)
def test_words_are_found_as_words_in_any_case(text: str, words: str, expected: bool) -> None:
    assert contains_words(text, words) is expected


@pytest.mark.parametrize(
    ("phrase", "wanted", "expected"),
    [
        (Phrase("a photo of {}"), ["fox"], "a photo of fox"),
        (Phrase("{}", ", at night"), ["fox"], "fox, at night"),
        (Phrase("a photo of {}", " on a beach"), ["X", "Y"], "a photo of X and Y on a beach"),
        (Phrase("a photo of a {}"), ["X", "Y"], "a photo of a X and a Y"),
        (Phrase("a photo of the {}", joint="{} next to {}"), ["X", "Y"], "a photo of the X next to the Y"),
        (Phrase("an {} here"), ["X", "Y", "Z"], "an X, an Y and an Z here"),
        (Phrase("a photo of a {}"), ["a flower"], "a photo of a flower"),
        (Phrase("a photo of a {}"), ["X", "an apple"], "a photo of a X and an apple"),
        (Phrase("a photo of {}"), ["a flower"], "a photo of a flower"),
        (Phrase("a photo of the {}"), ["X", "a flower"], "a photo of the X and a flower"),
        (Phrase("a photo of a {}", " on a beach", plain_together=True), ["X", "Y"], "a X and a Y on a beach"),
        (Phrase("a photo of {}", " on a beach", plain_together=True), ["X", "Y"], "X and Y on a beach"),
        (Phrase("a photo of {}", " on a beach", plain_together=True), ["X"], "a photo of X on a beach"),
        (Phrase("a big {}", plain_together=True), ["X", "Y"], "X and Y"),
        (Phrase("{}", joint="{} holding {}"), ["X", "Y", "Z"], "X, Y holding Z"),
        (Phrase("{}, solo", ", night", "{}, {}"), ["X", "Y"], "X, Y, solo, night"),
        (Phrase("{}", "", "2girls, {}, {}"), ["X", "Y"], "2girls, X, Y"),
        (Phrase("{}", "", "{}, {}, side by side"), ["X", "Y", "Z"], "X, Y, Z, side by side"),
        (Phrase("{} like {}"), ["X"], "X like X"),
    ],
)
def test_one_or_several_things_are_asked_in_their_order(phrase: Phrase, wanted: list[str], expected: str) -> None:
    assert phrase.asking(*wanted) == expected


def test_tags_are_joined_by_commas_and_sentences_as_sentences() -> None:
    for phrase in draws("booru", Part.LEARN):
        assert phrase.after == "" or phrase.after.startswith(", ")
    photo = draws("photo", Part.LEARN)
    starts = ("on ", "in ", "at ", "under ", "by ", "wearing ", "with ", "holding ")
    for phrase in photo:
        for words in words_in(phrase, BANKS["photo"]):
            assert (f" {words}" in phrase.after and f", {words}" not in phrase.after) == words.startswith(starts)


@every_bank
def test_forms_and_joints_have_their_places(name: str) -> None:
    bank = BANKS[name]
    assert all(form.count(SLOT) == 1 for form in bank.forms)
    assert all(joint.count(SLOT) == 2 for joint in bank.joints)
    assert set(BANKS) == set(TEMPLATES)
