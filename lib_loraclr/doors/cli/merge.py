"""`loraclr merge`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import LoraclrError
from ...merge import Start, forecast, merge_loras, start_from
from ...model import Host, Processes
from ...output import Merge, PreviewOptions, advice, draw_pictures, save_merge
from ...progress import Progress
from ...recording import example_prompts, load_inputs
from ...request import MergeRequest, check_prompts
from .arguments import (
    add_lora_arguments,
    add_merge_arguments,
    add_method_arguments,
    add_recording_arguments,
)
from .console import ConsoleProgress, add_model_arguments, load_host
from .forecasts import forecast_values, print_forecast, result_values
from .jobs import Job, listed_jobs, one_job, report_lines
from .launched import join
from .working import add_work_arguments, left_out, work_folder

HELP = "merge LoRAs into one"
DESCRIPTION = """\
Merge several LoRAs into one, so that every concept keeps its identity.

  loraclr merge --checkpoint model.safetensors fox.safetensors penguin.safetensors:0.8 --output friends
  loraclr merge --checkpoint model.safetensors fox.safetensors mono.safetensors --kind mono=style --effort fast -o zoo
  loraclr merge --checkpoint model.safetensors fox.safetensors penguin.safetensors --save-as checkpoint -o model-friends
  loraclr merge --checkpoint model.safetensors --request request.json --output friends
  loraclr merge --checkpoint model.safetensors --recipe-from friends.safetensors --lora-dir loras --output again
  loraclr merge --checkpoint model.safetensors --add-to friends.safetensors owl.safetensors --output more-friends
  loraclr merge --checkpoint model.safetensors --add-to pets.safetensors --add-to zoo.safetensors --output animals
  loraclr merge --checkpoint model.safetensors --batch jobs.jsonl --output-dir merged --work-folder work

The result is used as <lora:friends:1> together with the concepts' trigger words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lora_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--request", metavar="FILE", help="a request in JSON; flags change it")
    source.add_argument("--recipe-from", metavar="FILE", help="repeat the merge that made this file; flags change it")
    source.add_argument(
        "--add-to",
        action="append",
        metavar="FILE",
        help="go on from this merged file, and add the LoRAs that are named to those that are in it; may be repeated, to join "
        "merged files",
    )
    source.add_argument(
        "--batch",
        metavar="FILE",
        help='many merges, one JSON object a line: a request and its "output"; prints a line of JSON for each, and goes on after '
        "one that failed",
    )
    parser.add_argument(
        "--lora-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="where --recipe-from and --add-to look for the LoRAs",
    )
    add_model_arguments(parser)
    add_method_arguments(parser)
    add_recording_arguments(parser)
    add_merge_arguments(parser)
    add_work_arguments(parser)
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


def run(arguments: argparse.Namespace) -> int:
    processes = join()
    with processes.failing():
        code = _run_many(arguments, processes) if arguments.batch else _run_one(arguments, processes)
    processes.leave()
    return code


def _run_one(arguments: argparse.Namespace, processes: Processes) -> int:
    job = one_job(arguments)
    job = replace(job, request=processes.from_one(job.request))  # one seed for all, where another is drawn each time
    host = load_host(arguments)
    if arguments.show_prompts:
        if processes.rank == 0:
            _show_prompts(job.request, host)
        return 0
    if arguments.dry_run:
        looked = forecast(job.request, host, _start(job, host))
        if processes.rank == 0:
            print_forecast(looked, host)
        return 2 if looked.examination.problems else 0
    merge, files = _made(arguments, job, host, processes)
    if processes.rank == 0:
        _print_result(merge, files)
    return 0


def _run_many(arguments: argparse.Namespace, processes: Processes) -> int:
    """The merges of a file on one loaded checkpoint, a line of JSON for each; 1 if one of them failed."""
    if processes.count > 1:
        raise LoraclrError(
            "--batch goes on after a merge that failed, which several processes cannot: start one process for each card, with "
            "a file of its own."
        )
    jobs = listed_jobs(arguments)
    if arguments.show_prompts:
        raise LoraclrError("--show-prompts shows those of one merge, and --batch has many: leave one of them out.")
    host = load_host(arguments) if any(isinstance(job, Job) for _, job in jobs) else None
    paces: dict[tuple[int, int], float] = {}

    def do(job: Job) -> dict[str, object]:
        if arguments.dry_run:
            looked = forecast(job.request, host)
            looked.examination.require_possible()
            return forecast_values(looked, host, paces)
        begun = time.monotonic()
        merge, files = _made(arguments, job, host, processes)
        return {"seconds": round(time.monotonic() - begun, 1), **result_values(merge, files)}

    failed = report_lines(jobs, do, lambda: traceback.print_exc(file=sys.stderr))
    return 1 if failed else 0


def _start(job: Job, host: Host) -> Start | None:
    """The finished merges that a job goes on from, if it does."""
    return start_from(job.add_to, host) if job.add_to else None


def _made(arguments: argparse.Namespace, job: Job, host: Host, processes: Processes) -> tuple[Merge, list[Path]]:
    """A merge and its files, which the first of several processes writes."""
    progress = ConsoleProgress() if processes.rank == 0 else Progress()
    start = _start(job, host)
    try:
        work = work_folder(arguments)
        merge = merge_loras(job.request, host, progress, start=start, work=work, processes=processes)
        if said := left_out(work):
            progress.log(said)
        pictures = None
        if not arguments.no_preview:
            drawing = PreviewOptions(guidance=job.request.recording.guidance)
            pictures = draw_pictures(merge, host, drawing, progress, processes)
    finally:
        if isinstance(progress, ConsoleProgress):
            progress.close()
    if processes.rank:
        return merge, []
    files = save_merge(
        merge,
        job.path,
        preview=pictures.card if pictures else None,
        sheet=pictures.sheet if pictures and arguments.report else None,
        with_report=arguments.report,
        overwrite=arguments.overwrite,
    )
    return merge, files


def _print_result(merge: Merge, files: Sequence[Path]) -> None:
    """What a person should know of a merge, and how it is used."""
    report, path = merge.report, files[0]
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
    print(f"seed {merge.request.seed}")
    print("\n".join(f"wrote {file}" for file in files))
    triggers = ", ".join(concept.trigger for concept in merge.request.concepts if concept.trigger)
    if merge.request.save_as == "checkpoint":
        print(f"\nPut it into models/Stable-diffusion and choose it as checkpoint; the words are: {triggers}")
    else:
        print(f"\nPut it into models/Lora and write <lora:{path.stem}:1> in a prompt, with: {triggers}")


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
