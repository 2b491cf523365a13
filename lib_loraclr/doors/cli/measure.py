"""`loraclr measure`."""

from __future__ import annotations

import argparse

from ...merge import measure_loras
from ...request import parse_lora_argument
from .arguments import add_lora_arguments, add_recording_arguments, build_request, require_files
from .console import ConsoleProgress, add_model_arguments, load_host

HELP = "measure how much of each concept survives"
DESCRIPTION = """\
Measure how much of each LoRA survives when all of them are used together, or in a merged file.

  loraclr measure --checkpoint model.safetensors fox.safetensors penguin.safetensors
  loraclr measure --checkpoint model.safetensors fox.safetensors penguin.safetensors --merged friends.safetensors

Retention is 1 where the model predicts the same as with that LoRA alone, 0 where it is as if the LoRA were absent."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lora_arguments(parser)
    parser.add_argument(
        "--merged",
        metavar="FILE",
        help="a LoRA that is meant to hold all of them, made by any program; with a weight if need be (file:0.8)",
    )
    add_model_arguments(parser)
    add_recording_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    request = build_request(arguments)
    merged = [parse_lora_argument(arguments.merged).lora] if arguments.merged else []
    require_files([*(concept.lora for concept in request.concepts), *merged])
    host = load_host(arguments)
    progress = ConsoleProgress()
    try:
        report = measure_loras(request, host, arguments.merged, progress)
    finally:
        progress.close()
    for warning in report.warnings:
        print(f"warning: {warning}")
    print(report.table())
