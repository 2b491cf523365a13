"""Where the trigger words of a LoRA come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_loraclr.files.triggers import find_trigger, tag_frequency, trigger_from_metadata

TAGS = {"ss_tag_frequency": json.dumps({"10_a": {"sks": 8, "dog": 9}, "5_b": {"sks ": 4}})}
PHRASE = {"modelspec.trigger_phrase": " sks animal "}


def write_card(folder: Path, content: str | bytes) -> Path:
    """Put a WebUI card beside a LoRA of that name, and return the LoRA's path."""
    (folder / "fox.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "fox.safetensors"


def test_the_card_is_asked_before_the_phrase_and_the_phrase_before_the_tags(tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    assert find_trigger(path, {}) == ""
    assert find_trigger(path, TAGS) == "sks"
    assert find_trigger(path, {**TAGS, **PHRASE}) == "sks animal"
    write_card(tmp_path, json.dumps({"activation text": " my fox "}))
    assert find_trigger(path, {**TAGS, **PHRASE}) == "my fox"


@pytest.mark.parametrize(
    "card",
    ["", "not json", "[]", '"text"', "{}", '{"activation text": "  "}', '{"activation text": 5}', b"\xff\xfe"],
    ids=repr,
)
def test_a_card_that_is_damaged_or_says_nothing_leaves_the_word_to_the_metadata(
    tmp_path: Path, card: str | bytes
) -> None:
    assert find_trigger(write_card(tmp_path, card), PHRASE) == "sks animal"


def test_the_most_frequent_tag_is_counted_over_all_folders() -> None:
    assert trigger_from_metadata(TAGS) == "sks"


def test_a_tie_between_tags_does_not_depend_on_their_order() -> None:
    orders = [{"a": {"x": 3, "y": 3}}, {"a": {"y": 3}, "b": {"x": 3}}]
    assert len({trigger_from_metadata({"ss_tag_frequency": json.dumps(order)}) for order in orders}) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": 5}', '{"a": {"x": "many"}}', '{"a": {"x": null}}', '{"a": {"x": Infinity}}']
)
def test_tags_of_another_form_count_as_none(text: str) -> None:
    assert tag_frequency({"ss_tag_frequency": text}) == {}
    assert trigger_from_metadata({"ss_tag_frequency": text}) == ""
