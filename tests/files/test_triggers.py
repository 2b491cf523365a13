"""The words that call a LoRA: where they come from, which of them are guesses, and how they stand in a prompt."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lib_loraclr.files.triggers import Trigger, find_trigger, tag_frequency
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.brackets import escaped, has_weights, words_of
from lib_loraclr.request.merge_request import Concept

PHRASE = {"modelspec.trigger_phrase": " sks animal "}


def tags(folders: object, **more: object) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps(folders), **{name: json.dumps(value) for name, value in more.items()}}


def found(metadata: dict[str, str], name: str = "file") -> tuple[str, bool]:
    trigger = find_trigger(Path(f"/nowhere/{name}.safetensors"), metadata)
    return trigger.words, trigger.is_guess


def write_card(folder: Path, content: str | bytes) -> Path:
    """Put a WebUI card beside a LoRA of that name, and return the LoRA's path."""
    (folder / "fox.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "fox.safetensors"


# -- sources


def test_card_then_phrase_then_trained_words_then_tags_then_the_name(tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    metadata: dict[str, str] = {}
    expected = [Trigger("fox", "name", is_guess=True)]
    assert find_trigger(path, metadata) == expected[-1]
    for more, trigger in (
        (tags({"a": {"sks": 9, "red": 4}}), Trigger("sks", "tags", is_guess=False)),
        ({"trained_words": '["my fox, red", "other"]'}, Trigger("my fox, red", "metadata", is_guess=False)),
        (PHRASE, Trigger("sks animal", "metadata", is_guess=False)),
    ):
        metadata |= more
        assert find_trigger(path, metadata) == trigger
    write_card(tmp_path, json.dumps({"activation text": " the fox "}))
    assert find_trigger(path, metadata) == Trigger("the fox", "card", is_guess=False)


@pytest.mark.parametrize(
    "card",
    ["", "not json", "[]", '"text"', "{}", '{"activation text": "  "}', '{"activation text": 5}', b"\xff\xfe"]
    + ["[" * 100_000, '{"activation text": "<lora:fox:0.8>"}'],
    ids=lambda card: repr(card)[:40],
)
def test_a_card_that_is_damaged_or_says_nothing_leaves_the_word_to_the_metadata(
    tmp_path: Path, card: str | bytes
) -> None:
    assert find_trigger(write_card(tmp_path, card), PHRASE).words == "sks animal"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("sks", "sks"),
        ('["sks", "other"]', "sks"),
        ('["", 5, "sks"]', "sks"),
        ("[sks", r"\[sks"),
        ("[]", "file"),
        ("", "file"),
    ],
)
def test_trained_words_are_a_text_or_a_list_of_alternatives(value: str, words: str) -> None:
    assert found({"trained_words": value})[0] == words


# -- tags


@pytest.mark.parametrize(
    ("folders", "words", "guess"),
    [
        ({"10_lily": {"lilyfield": 48, "1girl": 48, "solo": 48, "red hair": 44}}, "lilyfield", False),
        ({"8_rose": {"1girl": 36, "solo": 36, "roseblossom": 36, "blue hair": 30}}, "roseblossom", False),
        ({"a": {"sks": 8, "dog": 9}, "b": {"sks ": 4}}, "sks", True),
        ({"a": {"zebra": 3, "apple": 3, "mango": 3}}, "zebra", True),
        ({"a": {"apple": 3, "zebra": 3}}, "apple", True),
        ({"a": {"sks": 5, "solo": 50}}, "sks", True),
        ({"a": {"1girl": 9, "Solo": 9, "woman": 9}}, "file", True),
        ({"5_knight": {"knight armor": 40, "sword": None}}, "knight armor", False),
        ({"a": ["odd"], "b": {"sks": 4}, "c": None}, "sks", False),
    ],
)
def test_the_tag_of_most_pictures_that_is_not_in_everybodys(folders: object, words: str, guess: bool) -> None:
    assert found(tags(folders)) == (words, guess)


def test_a_tie_goes_to_the_tag_that_the_file_is_called_by_else_to_the_first_of_the_captions() -> None:
    tied = tags({"a": {"red hair": 48, "lilyfield": 48, "apron": 48}})
    assert found(tied, "lilyfield-v2") == ("lilyfield", True)
    assert found(tied, "unrelated") == ("red hair", True)


def test_pictures_that_nobody_tagged_count() -> None:
    """A tag in a tenth of the pictures is a guess, and one in all of them is none."""
    sizes = {"10_sks": {"n_repeats": 10, "img_count": 40}}
    assert found(tags({"10_sks": {"sks": 4}}, ss_dataset_dirs=sizes)) == ("sks", True)
    assert found(tags({"10_sks": {"sks": 40}}, ss_dataset_dirs=sizes)) == ("sks", False)


def test_regularization_pictures_name_nothing() -> None:
    folders = {"1_flower": {"tulip": 200, "vase": 200}, "10_sks": {"sks": 20}}
    own, regular = {"10_sks": {"img_count": 20}}, {"1_flower": {"img_count": 200}}
    assert found(tags(folders)) == ("tulip", True), "control"
    assert found(tags(folders, ss_dataset_dirs=own, ss_reg_dataset_dirs=regular)) == ("sks", False)
    # a folder that is both is trained on
    both = tags(folders, ss_dataset_dirs=own | regular, ss_reg_dataset_dirs=regular)
    assert found(both) == ("tulip", True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        *((text, {}) for text in ("", "{", "[]", "null", '{"a": 5}', "[" * 100_000, '{"a": {}}')),
        ('{"a": {"x": "many", "y": 3}, "b": 7}', {"a": {"y": 3}}),
        ('{"a": {"x": null, "y": Infinity, "z": 2, "v": -1, "w": NaN}}', {"a": {"z": 2}}),
        ('{"a": {"x": "4", "y": 2.0, "  ": 9, "z": [1]}}', {"a": {"x": 4, "y": 2}}),
        ('{"a": {" x": 1, "x ": 2}}', {"a": {"x": 3}}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_of_damaged_counts_only_the_damaged_are_lost(text: str, kept: dict) -> None:
    assert tag_frequency({"ss_tag_frequency": text}) == kept


# -- brackets and tags of networks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<lora:card_tag:0.8> lilyfield, (red dress:1.2)", "lilyfield, (red dress:1.2)"),
        ("lily, <lora:a:1>, <hypernet:b:0.5>, red", "lily, red"),
        ("<lyco:a:1:te=0.5>lily", "lily"),
        ("a < b, c", "a < b, c"),
    ],
)
def test_networks_in_a_cards_text_are_dropped_and_its_weights_stay(tmp_path: Path, text: str, words: str) -> None:
    assert find_trigger(write_card(tmp_path, json.dumps({"activation text": text})), {}).words == words


def test_brackets_of_tags_and_names_are_escaped_once() -> None:
    paren = tags({"a": {"lily (garden story)": 48, "1girl": 40}})
    assert found(paren) == (r"lily \(garden story\)", False)
    assert found(tags({"a": {r"lily \(garden story\)": 48}})) == (r"lily \(garden story\)", False)
    assert found({"modelspec.trigger_phrase": "lily [v2]"})[0] == r"lily \[v2\]"
    assert found({"modelspec.trigger_phrase": "lily, (red dress:1.2)"})[0] == "lily, (red dress:1.2)", (
        "a prompt already"
    )
    assert found({}, "lily (v2)") == (r"lily \(v2\)", True)


@pytest.mark.parametrize(
    ("prompt", "words", "weighted"),
    [
        ("a fox", "a fox", False),
        (r"lily \(garden story\)", "lily (garden story)", False),
        ("an (important) word", "an important word", True),
        ("a (red dress:1.2), [grass]", "a red dress, grass", True),
        ("((a:1.3) b:0.5)", "a b", True),
        ("a) b] c:1.2) : d", "a) b] c:1.2) : d", False),
        ("(unbalanced", "unbalanced", True),
        (r"a\\b \x", r"a\b x", False),
    ],
)
def test_the_words_of_a_prompt_are_those_that_the_webui_reads(prompt: str, words: str, weighted: bool) -> None:
    """As `parse_prompt_attention` of the WebUI has them."""
    assert (words_of(prompt), has_weights(prompt)) == (words, weighted)


@pytest.mark.skipif("LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to compare with")
def test_the_words_of_any_prompt_are_those_of_the_webuis_own_parser() -> None:
    source = (Path(os.environ["LORACLR_WEBUI_DIR"]) / "modules" / "prompt_parser.py").read_text("utf-8")
    begin, end = source.index("re_attention = re.compile"), source.index('if __name__ == "__main__"')
    names: dict = {"re": re}
    exec(source[begin:end], names)  # the module itself needs the whole WebUI
    rng, pieces = random.Random(0), ["(", ")", "[", "]", "\\", ":", "1.2", ":1.1)", r"\(", r"\)", "a", " b", ", "]
    weighted = 0
    for _ in range(5000):
        prompt = "".join(rng.choices(pieces, k=rng.randint(0, 9)))
        parts = names["parse_prompt_attention"](prompt)
        assert words_of(prompt) == "".join(text for text, _ in parts), prompt
        if any(weight != 1 for _, weight in parts):
            weighted += 1
            assert has_weights(prompt), prompt
    assert 1000 < weighted < 4500, "control: both kinds occur"


@pytest.mark.parametrize("text", ["lily (garden story)", "a [b", "c:1.2)", "plain", "(a:1.1) (b)"])
def test_what_is_escaped_is_read_letter_by_letter(text: str) -> None:
    assert (words_of(escaped(text)), has_weights(escaped(text))) == (text, False)
    assert escaped(escaped(text)) == escaped(text)


def test_stand_alone_escaped_brackets_are_the_tokens_of_brackets(host: DiffusersHost) -> None:
    plain, literal = (host.encode([prompt]).tensors["context"] for prompt in ("a red dress", "a (red dress)"))
    escapes = host.encode([r"a \(red dress\)"]).tensors["context"]
    assert literal.equal(plain), "weights are left out, and so are their brackets"
    assert not escapes.equal(plain), "control: brackets are tokens"


# -- in a merge


def test_a_merge_says_which_words_are_a_guess(
    tmp_path: Path, host: DiffusersHost, write_lora: Callable[..., Path]
) -> None:
    cases = {
        "named": (PHRASE, "sks animal", None),
        "alone": (tags({"a": {"sks": 9}}), "sks", None),
        "tied": (
            tags({"a": {"zebra": 3, "apple": 3}}),
            "zebra",
            r"a tag of its captions (zebra) is taken for them, which is a guess",
        ),
        "mute": ({}, "mute", "its file name is taken for them, which is a guess"),
    }
    for name, (metadata, words, said) in cases.items():
        path = write_lora(tmp_path / f"{name}.safetensors", metadata=metadata)
        given = load_input(Concept(str(path)), host)
        guesses = [warning for warning in given.warnings if "guess" in warning]
        assert (given.concept.trigger, given.trigger_is_guess) == (words, said is not None)
        assert len(guesses) == (said is not None) and all(said in warning and name in warning for warning in guesses)
        # what a person says is none
        asked = load_input(Concept(str(path), trigger="own"), host)
        assert (asked.concept.trigger, asked.trigger, asked.trigger_is_guess) == ("own", None, False)
    style = load_input(Concept(str(tmp_path / "mute.safetensors"), kind="style"), host)
    assert (style.concept.trigger, style.trigger_is_guess) == ("", False), (
        "a style needs none, and its name calls nothing"
    )


def test_stand_alone_weights_in_words_are_said_to_be_left_out(
    tmp_path: Path, host: DiffusersHost, write_lora: Callable[..., Path]
) -> None:
    path = write_lora(tmp_path / "fox.safetensors")
    weighted = load_input(Concept(str(path), trigger="(fox:1.2)"), host).warnings
    assert ["(fox:1.2)" in warning and "Merge in the WebUI" in warning for warning in weighted] == [True]
    for trigger in ("fox", r"fox \(red\)"):
        assert load_input(Concept(str(path), trigger=trigger), host).warnings == ()
