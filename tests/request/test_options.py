"""Options: what a door is told of them, and which values are refused with which words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.request.options import Option, option, parse_number, parse_options, schema
from lib_loraclr.solving.methods import METHODS, Method, NoOptions


@dataclass(frozen=True)
class Sample:
    effort: str = option("fast", "How hard to try.", choices=("fast", "slow"))
    steps: int = option(5, "How many.", minimum=1, maximum=10)
    weight: float = option(0.5, "How much.", minimum=0.0, maximum=1.0)
    loud: bool = option(False, "Whether to tell.")
    open_ended: int = option(2, "No upper end.", minimum=0)


def parsed(**values: Any) -> Sample:
    return parse_options(Sample, values, "method sample")


def test_the_schema_holds_all_that_a_door_shows_in_the_order_of_the_fields() -> None:
    assert schema(Sample)[:2] == [
        Option("effort", str, "fast", "How hard to try.", choices=("fast", "slow")),
        Option("steps", int, 5, "How many.", minimum=1, maximum=10),
    ]
    assert [item.name for item in schema(Sample)] == [field.name for field in dataclasses.fields(Sample)]


def test_what_is_not_given_keeps_its_default() -> None:
    assert parsed() == Sample()
    assert parsed(steps=3) == dataclasses.replace(Sample(), steps=3)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("effort", "slow", "slow"),
        ("steps", "7", 7),
        ("weight", ".25", 0.25),
        ("weight", "1", 1.0),
        ("loud", "True", True),
        ("loud", "false", False),
    ],
)
def test_text_from_a_command_line_and_a_value_from_json_mean_the_same(name: str, text: str, value: object) -> None:
    from_text = getattr(parsed(**{name: text}), name)
    assert from_text == value == getattr(parsed(**{name: value}), name)
    assert type(from_text) is type(value)


@pytest.mark.parametrize(("name", "value"), [("steps", 1), ("steps", 10), ("weight", 0), ("weight", 1)])
def test_both_ends_of_a_range_belong_to_it(name: str, value: float) -> None:
    assert getattr(parsed(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("effort", "fats", r"Option effort of method sample is 'fats': choose one of fast, slow\."),
        ("effort", 1, r"Option effort of method sample is 1: choose one of fast, slow\."),
        ("steps", 0, r"Option steps of method sample is 0: give a number from 1 to 10\."),
        ("steps", 11, "is 11: give a number from 1 to 10"),
        ("steps", 1.5, "is 1.5, which is not a whole number: give one like 1"),
        ("steps", "many", "is 'many', which is not a whole number"),
        ("steps", True, "is True, which is not a whole number"),
        ("weight", 1.01, "is 1.01: give a number from 0.0 to 1.0"),
        ("weight", "nan", "is 'nan', which is not a number"),
        ("weight", None, "is None, which is not a number"),
        ("loud", "yes", "is 'yes': give true or false"),
        ("loud", 1, "is 1: give true or false"),
    ],
)
def test_a_bad_value_is_refused_with_the_option_its_owner_the_value_and_what_would_do(
    name: str, value: object, message: str
) -> None:
    with pytest.raises(LoraclrError, match=message):
        parsed(**{name: value})


def test_a_range_with_one_end_is_told_without_the_other() -> None:
    with pytest.raises(LoraclrError, match="open_ended") as refusal:
        parsed(open_ended=-1)
    assert "None" not in str(refusal.value)


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(LoraclrError, match=r"option 'step' of method sample: did you mean 'steps'\? known are effort"):
        parsed(step=3)


def test_an_option_of_something_that_has_none_says_so_instead_of_an_empty_list() -> None:
    with pytest.raises(LoraclrError, match=r"There is no option 'steps': method sum has none\. Leave it out\."):
        parse_options(NoOptions, {"steps": 3}, "method sum")


@pytest.mark.parametrize(
    "value", [float("inf"), "-inf", "nan", "", "1,5", [], {}, True, 10**400], ids=lambda v: repr(v)[:8]
)
def test_what_is_not_a_finite_number_is_refused(value: object) -> None:
    with pytest.raises(LoraclrError, match="^The thing, which is not a number: give one like 1"):
        parse_number(value, "The thing")


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert parse_number("3.0", "The thing", whole=True) == 3
    assert type(parse_number("3.0", "The thing", whole=True)) is int


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_methods_defaults_pass_their_own_checks_and_every_option_explains_itself(method: Method) -> None:
    items = schema(method.options)
    assert parse_options(method.options, {item.name: item.default for item in items}, method.name) == method.options()
    for item in items:
        assert item.help.endswith("."), item.name
        assert item.choices or item.type is bool or (item.minimum is not None and item.maximum is not None), item.name
