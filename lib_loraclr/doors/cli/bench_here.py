"""`loraclr bench-here`: every method on a person's own LoRAs, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...errors import LoraclrError
from ...files import write_files
from ...merge import DRAWN, Outcome, Several, comparable, drawn, outcome_of, placed
from ...output import PreviewOptions, figure
from ...solving import find_method
from .arguments import add_lora_arguments, add_recording_arguments, build_request, require_files
from .console import ConsoleProgress, add_model_arguments, load_host

HELP = "compare all methods on your own LoRAs"
DESCRIPTION = """\
Merge the same LoRAs by every method from one recording, and show what each keeps of them.

  loraclr bench-here --checkpoint model.safetensors fox.safetensors penguin.safetensors
  loraclr bench-here ... --methods contrastive ties average --pictures compared

Retention is 1 where the model predicts the same as with that LoRA alone, 0 where it is as if the LoRA were absent. No merge is
kept; pictures of the best are drawn where --pictures says so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lora_arguments(parser)
    known = ", ".join(comparable())
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help=f"which, each at its defaults (default: all): {known}"
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help=f"draw each concept as the {DRAWN} best make it, into this folder",
    )
    add_model_arguments(parser)
    add_recording_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    request = build_request(arguments)
    require_files([concept.lora for concept in request.concepts])
    if arguments.pictures and arguments.pictures.exists():
        raise LoraclrError(f"{arguments.pictures} exists: name a new folder with --pictures.")
    methods = [find_method(name).name for name in arguments.methods or comparable()]
    host, progress = load_host(arguments), ConsoleProgress()
    try:
        several = Several(request, host, progress)
        outcomes: list[Outcome] = []
        for method in methods:
            outcomes = placed(outcomes, outcome_of(several, method))
            progress.close()
        print(table([concept.label for concept in several.request.concepts], outcomes))
        if arguments.pictures:
            _draw(several, outcomes, arguments.pictures)
    finally:
        progress.close()


def table(labels: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The outcomes as they are ranked: a row each."""
    rows = [("method", *labels, "mean", "weakest", "base drift", "rank", "seconds")]
    for outcome in outcomes:
        kept = outcome.retention
        figures = [figure(value) for value in (*kept.concepts, kept.mean, kept.weakest, kept.base_drift)]
        rows.append((outcome.made.method, *figures, f"{outcome.made.rank:.0f}", f"{outcome.seconds:.0f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "The first that looks at inputs has the seconds of recording in its own."])


def _draw(several: Several, outcomes: Sequence[Outcome], folder: Path) -> None:
    """A sheet for each of the best."""
    for outcome in outcomes[:DRAWN]:
        sheet = drawn(several, outcome, PreviewOptions()).sheet
        path = folder / f"{outcome.made.method}.png"
        write_files({path: lambda stream, sheet=sheet: sheet.save(stream, "PNG")}, overwrite=False)
        print(f"wrote {path}")
