"""The command line's help, and its lists."""

from __future__ import annotations

import argparse

import pytest
from runs import Run

from lib_loraclr import __version__
from lib_loraclr.doors.cli import COMMANDS, build_parser
from lib_loraclr.request.options import schema
from lib_loraclr.solving.methods import METHODS, all_baselines

NAMES = [command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_and_each_of_its_arguments(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: loraclr {name}")
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for action in commands.choices[name]._actions:
        assert action.help, action.dest
        assert action.dest == "help" or (action.option_strings or [action.metavar])[0] in result.out


def test_the_help_lists_every_command_with_what_it_is_for(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for name, command in zip(NAMES, COMMANDS, strict=True):
        assert name in result.out
        assert command.HELP in result.out


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.strip() == __version__


def test_methods_lists_every_method_with_its_source_and_every_option_with_its_default(run: Run) -> None:
    result = run("methods")
    assert result.code == 0
    for method in (*METHODS.values(), *all_baselines().values()):
        assert f"{method.name}: {method.label}" in result.out
        assert method.source in result.out
        for item in schema(method.options):
            assert f"--{item.name.replace('_', '-')} [" in result.out
            assert f"default {item.default}] {item.help}" in result.out


def test_every_option_of_every_method_is_a_flag_of_merge(run: Run) -> None:
    printed = run("merge", "--help").out
    for method in METHODS.values():
        for item in schema(method.options):
            assert f"--{item.name.replace('_', '-')} VALUE" in printed


def test_measure_offers_nothing_that_it_would_ignore(run: Run) -> None:
    """Retention is measured on its own paths, whatever was recorded to merge."""
    printed = run("measure", "--help").out
    for flag in ("--show-prompts", "--paths", "--steps-per-path", "--importance"):
        assert flag not in printed
