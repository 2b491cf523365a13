"""Options of a method: a frozen dataclass whose fields carry range, choices and help.

The same dataclass is the method's sliders in the tab, its flags on the command line and its keys in JSON.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import LoraclrError, unknown_name

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option, as every door shows it.

    Attributes:
        name: the field's name
        type: bool, int, float or str
        default: its default
        help: one sentence
        minimum, maximum: the range of a number, both inside
        choices: the values of a str
    """

    name: str
    type: type
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def option(
    default: Any,
    text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with what every door needs to show it."""
    metadata = {"help": text, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def schema(options_class: type) -> list[Option]:
    """The options of an options class, in their order."""
    return [
        Option(field.name, type(field.default), field.default, **field.metadata)
        for field in dataclasses.fields(options_class)
    ]


def parse_options(options_class: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Build an options object from names and values (text or JSON), checked.

    Args:
        values: option name -> value
        owner: whose options they are, for messages ("method ridge")

    Raises:
        LoraclrError: an unknown option, a value of the wrong type, out of range, or not among the choices
    """
    known = {item.name: item for item in schema(options_class)}
    for name in values:
        if name not in known:
            raise (
                unknown_name("option", name, known, where=f"of {owner}")
                if known
                else LoraclrError(f"There is no option {name!r}: {owner} has none. Leave it out.")
            )
    return options_class(**{name: _parse(known[name], value, owner) for name, value in values.items()})


def _parse(item: Option, value: Any, owner: str) -> Any:
    problem = f"Option {item.name} of {owner} is {value!r}"
    if item.type is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise LoraclrError(f"{problem}: give true or false.")
        return value
    if item.type is str:
        if value not in item.choices:
            raise LoraclrError(f"{problem}: choose one of {', '.join(item.choices)}.")
        return value
    number = parse_number(value, problem, whole=item.type is int)
    if not _inside(number, item.minimum, item.maximum):
        ends = [f"{word} {end}" for word, end in (("from", item.minimum), ("to", item.maximum)) if end is not None]
        raise LoraclrError(f"{problem}: give a number {' '.join(ends)}.")
    return number


def parse_number(value: Any, problem: str, *, whole: bool = False) -> float | int:
    """A finite number from text or JSON.

    Args:
        problem: how the message begins

    Raises:
        LoraclrError: `value` is not a finite number, or not a whole one though `whole`
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or (whole and number != int(number)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise LoraclrError(f"{problem}, which is not a {'whole ' if whole else ''}number: give one like 1.") from None
    return int(number) if whole else number


def _inside(number: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or number >= minimum) and (maximum is None or number <= maximum)
