"""Command line: `merge`, `inspect`, `measure`, `methods`, `bench-here`. One file per command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ... import __version__
from ...errors import LoraclrError
from . import bench_here, inspect, measure, merge, methods
from .launched import talks

COMMANDS = (merge, inspect, measure, methods, bench_here)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loraclr", description="Merge several LoRAs into one, so that every concept keeps its identity."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        own = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 where one of many merges failed, 2 for what a person can mend, 130 after Ctrl-C."""
    parsed = build_parser().parse_args(arguments)
    try:
        return parsed.run(parsed) or 0
    except LoraclrError as error:
        if talks():
            print(f"loraclr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if talks():
            print("loraclr: interrupted; nothing was written.", file=sys.stderr)
        return 130
