"""`loraclr methods`: which methods there are, and their options."""

from __future__ import annotations

import argparse

from ...request import Option, schema
from ...solving import METHODS, Method, all_baselines

HELP = "list the merge methods and their options"
DESCRIPTION = "List the merge methods, what they do, where they come from, and their options."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> None:
    for method in METHODS.values():
        _tell(method)
    print("What others do instead, to compare with; their options are given by --option NAME=VALUE.\n")
    for method in all_baselines().values():
        _tell(method)


def _tell(method: Method) -> None:
    print(f"{method.name}: {method.label}\n    {method.summary}\n    {method.source}")
    for item in schema(method.options):
        print(f"    --{item.name.replace('_', '-')} {describe(item)}")
    print()


def describe(item: Option) -> str:
    """Default, range and help of an option in one line."""
    if item.choices:
        values = "|".join(item.choices)
    else:
        values = f"{item.minimum:g} to {item.maximum:g}" if item.maximum is not None else item.type.__name__
    return f"[{values}; default {item.default}] {item.help}"
