"""`loraclr merge`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ...errors import LoraclrError
from ...merge import merge_loras
from ...model import Host
from ...output import PreviewOptions, advice, check_destination, draw_pictures, save_merge
from ...recording import example_prompts, load_inputs
from ...request import MergeRequest, check_prompts, output_path
from ...solving import Procedure
from .arguments import (
    add_lora_arguments,
    add_merge_arguments,
    add_method_arguments,
    add_recording_arguments,
    build_request,
    require_files,
)
from .console import ConsoleProgress, add_model_arguments, load_host

HELP = "merge LoRAs into one"
DESCRIPTION = """\
Merge several LoRAs into one, so that every concept keeps its identity.

  loraclr merge --checkpoint model.safetensors fox.safetensors penguin.safetensors:0.8 --output friends
  loraclr merge --checkpoint model.safetensors fox.safetensors mono.safetensors --kind mono=style --effort fast -o zoo
  loraclr merge --checkpoint model.safetensors fox.safetensors penguin.safetensors --save-as checkpoint -o model-friends
  loraclr merge --checkpoint model.safetensors --request request.json --output friends
  loraclr merge --checkpoint model.safetensors --recipe-from friends.safetensors --lora-dir loras --output again

The result is used as <lora:friends:1> together with the concepts' trigger words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lora_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--request", metavar="FILE", help="a request in JSON; flags change it")
    source.add_argument("--recipe-from", metavar="FILE", help="repeat the merge that made this file; flags change it")
    parser.add_argument(
        "--lora-dir", action="append", default=[], metavar="DIR", help="where --recipe-from looks for the LoRAs"
    )
    add_model_arguments(parser)
    add_method_arguments(parser)
    add_recording_arguments(parser)
    add_merge_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", metavar="NAME", help="name of the new LoRA, with or without .safetensors")
    output.add_argument(
        "--output-dir",
        default=None,
        metavar="DIR",
        help="the folder it goes to, and must not leave (default: that of --output)",
    )
    output.add_argument("--overwrite", action="store_true", help="replace files of that name")
    output.add_argument("--no-preview", action="store_true", help="draw no picture")
    output.add_argument(
        "--report",
        action="store_true",
        help="also write NAME.report.json, and NAME.report.png with each concept as base, alone, all tags and merged",
    )


def run(arguments: argparse.Namespace) -> None:
    request = build_request(arguments)
    Procedure.of(request)  # refused before the model is loaded, which takes a minute
    path = _destination(arguments, request.save_as)
    require_files(concept.lora for concept in request.concepts)
    host = load_host(arguments)
    if arguments.show_prompts:
        _show_prompts(request, host)
        return
    progress = ConsoleProgress()
    try:
        merge = merge_loras(request, host, progress)
        pictures = None
        if not arguments.no_preview:
            drawing = PreviewOptions(guidance=request.recording.guidance)
            pictures = draw_pictures(merge, host, drawing, progress)
    finally:
        progress.close()
    files = save_merge(
        merge,
        path,
        preview=pictures.card if pictures else None,
        sheet=pictures.sheet if pictures and arguments.report else None,
        with_report=arguments.report,
        overwrite=arguments.overwrite,
    )
    report = merge.report
    for warning in report.warnings:
        print(f"warning: {warning}")
    print(report.table())
    if said := advice(report, merge.request):
        print(said)
    smallest, mean, largest = report.rank
    print(
        f"\n{report.layers} layers, rank {smallest} to {largest} (mean {mean:.0f}), which keeps {report.kept[1]:.1%} of the"
    )
    print(f"merge's effect ({report.kept[0]:.1%} in the weakest layer); {path.stat().st_size / 2**20:.1f} MB.")
    print("\n".join(f"wrote {file}" for file in files))
    triggers = ", ".join(concept.trigger for concept in merge.request.concepts if concept.trigger)
    if merge.request.save_as == "checkpoint":
        print(f"\nPut it into models/Stable-diffusion and choose it as checkpoint; the words are: {triggers}")
    else:
        print(f"\nPut it into models/Lora and write <lora:{path.stem}:1> in a prompt, with: {triggers}")


def _destination(arguments: argparse.Namespace, save_as: str) -> Path:
    """Where the file goes; refused before the model is loaded if it may not go there."""
    if not arguments.output:
        if arguments.show_prompts:
            return Path()
        raise LoraclrError("No output is named: give one with --output NAME.")
    name = arguments.output.replace("\\", "/") if arguments.output_dir is None else arguments.output
    if arguments.output_dir is None:
        folder, name = Path(name).parent, Path(name).name
    else:
        folder = Path(arguments.output_dir)
    path = output_path(folder, name)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(nearest, os.W_OK):
        raise LoraclrError(f"{nearest} may not be written to: choose another folder for --output.")
    checkpoint = Path(arguments.checkpoint) if arguments.checkpoint else None
    check_destination(path, save_as, checkpoint, overwrite=arguments.overwrite)
    return path


#: prompts that are shown of each concept
_SHOWN = 12


def _show_prompts(request: MergeRequest, host: Host) -> None:
    inputs = load_inputs(request.concepts, host)
    concepts = [lora.concept for lora in inputs]
    check_prompts(concepts, request.prompts)
    triggers = {concept.label: f" ({concept.kind}, trigger {concept.trigger or 'none'})" for concept in concepts}
    asked, beside = example_prompts(request, inputs, _SHOWN)
    for name, prompts in asked.items():
        print(f"{name}{triggers.get(name, '')}, for example:")
        print("\n".join(f"    {prompt}" for prompt in prompts))
    if beside:
        print("two in one picture, for example:")
        print("\n".join(f"    {prompt}" for prompt in beside))
    print(f"negative prompt: {request.prompts.negative or '(empty)'}")
