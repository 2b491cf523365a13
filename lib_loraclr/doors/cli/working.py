"""The work folder: what is kept while a merge runs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ...files import LIMIT_MB, WorkFolder


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """What is kept, and whether anything is done at all."""
    group = parser.add_argument_group("long merges")
    group.add_argument(
        "--work-folder",
        metavar="DIR",
        help="keep there what is recorded and how far the refinement is: a merge that was ended goes on from there, and what "
        "merges have in common is recorded once",
    )
    group.add_argument(
        "--work-limit",
        type=int,
        default=LIMIT_MB,
        metavar="MB",
        help=f"what that folder may grow to; what was used longest ago goes first (default: {LIMIT_MB})",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="say what the merge would take and what stands in its way, and stop"
    )


def work_folder(arguments: argparse.Namespace) -> WorkFolder | None:
    """The folder that was named, if one was.

    Raises:
        LoraclrError: it cannot be written to
    """
    return WorkFolder(Path(arguments.work_folder), arguments.work_limit) if arguments.work_folder else None


def left_out(work: WorkFolder | None) -> str:
    """What to say where the folder was too small for something; else nothing."""
    if work is None or not work.too_large:
        return ""
    size = math.ceil(work.too_large / (1 << 20))
    return (
        f"{size} MB were not kept in the work folder, as one file may take half of its limit: a merge that is ended there goes "
        f"on from before them. --work-limit {2 * size} has room."
    )
