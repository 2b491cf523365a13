"""Merges that are asked for, checked before the checkpoint is loaded, which takes a minute; one, or many of a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import LoraclrError
from ...files import require_safetensors
from ...output import check_destination
from ...request import MergeRequest, output_path, parse_lora_argument
from ...solving import Procedure
from .arguments import build_request, require_files
from .sources import beside, read_text

#: arguments of one merge, which a file of many has in its lines
ONE_MERGE = ("loras", "request", "recipe_from", "add_to", "output")


@dataclass(frozen=True)
class Job:
    """A merge that is asked for.

    Attributes:
        request: checked by itself
        path: where it is written
        add_to: the merged files that it goes on from
    """

    request: MergeRequest
    path: Path
    add_to: tuple[Path, ...] = ()


def one_job(arguments: argparse.Namespace) -> Job:
    """What the arguments ask for.

    Raises:
        LoraclrError: whatever in it a person can mend, as far as that is known before the checkpoint is loaded
    """
    return _checked(arguments, build_request(arguments), arguments.output)


def _checked(arguments: argparse.Namespace, request: MergeRequest, output: str | None) -> Job:
    Procedure.of(request)
    path = _destination(arguments, output, request.save_as)
    require_files(concept.lora for concept in request.concepts)
    add_to = tuple(Path(file) for file in getattr(arguments, "add_to", None) or ())
    for file in add_to:
        require_safetensors(file)
    return Job(request, path, add_to)


def _destination(arguments: argparse.Namespace, output: str | None, save_as: str) -> Path:
    """Where the file goes; refused if it may not go there."""
    if not output:
        if arguments.show_prompts or arguments.dry_run:
            return Path()
        raise LoraclrError("No output is named: give one with --output NAME.")
    name = output.replace("\\", "/") if arguments.output_dir is None else output
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


def listed_jobs(arguments: argparse.Namespace) -> list[tuple[str, Job | LoraclrError]]:
    """The merges of a file, one JSON object a line: name of the output, and the merge or what is wrong with it.

    A line has the fields of a request, and besides `output`, and in place of `concepts` perhaps `loras`, as on the command line.
    Flags beside the file change each of them.

    Raises:
        LoraclrError: there is no such file, nothing is in it, or arguments go with it that only one merge can have
    """
    path = Path(arguments.batch)
    given = [name for name in ONE_MERGE if getattr(arguments, name)]
    if given:
        flag = "LoRAs" if given[0] == "loras" else f"--{given[0].replace('_', '-')}"
        raise LoraclrError(f"{flag} goes with one merge, and --batch {path} has many: say it in the file's lines.")
    lines = [line for line in read_text(path, "file of merges").splitlines() if line.strip()]
    if not lines:
        raise LoraclrError(f"{path} names no merge: give one JSON object a line.")
    jobs: list[tuple[str, Job | LoraclrError]] = []
    taken: set[Path] = set()
    for line in lines:
        output = ""
        try:
            output, request = _parsed(line, path)
            job = _checked(arguments, build_request(arguments, request), output)
            if job.path in taken:
                raise LoraclrError(f"{output} is the output of a line before it too: give each its own.")
            taken.add(job.path)
            jobs.append((output, job))
        except LoraclrError as error:
            jobs.append((output, error))
    return jobs


def _parsed(line: str, path: Path) -> tuple[str, MergeRequest]:
    """The output's name and the request of a line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LoraclrError(f"The line is not JSON ({error}): correct it.") from None
    if not isinstance(values, dict):
        raise LoraclrError(f"The line is {values!r}: give an object with names and values.")
    output, loras = values.pop("output", None), values.pop("loras", None)
    if not isinstance(output, str) or not output:
        raise LoraclrError(f"output is {output!r}: give a name.")
    if loras is not None:
        if "concepts" in values or not (isinstance(loras, list) and all(isinstance(text, str) for text in loras)):
            raise LoraclrError(f"loras is {loras!r}: give a list of texts, and no concepts beside it.")
        values["concepts"] = [parse_lora_argument(text) for text in loras]
    request = MergeRequest.from_dict(values)
    return output, dataclasses.replace(request, concepts=tuple(beside(path, concept) for concept in request.concepts))


def report_lines(
    jobs: list[tuple[str, Job | LoraclrError]], do: Callable[[Job], dict[str, object]], failed: Callable[[], object]
) -> int:
    """Do them one after the other, and print a line of JSON for each; one that fails ends none of the others.

    Args:
        do: does one, and returns what there is to say of it
        failed: is called inside the handler of an error that nobody can mend, to write it where it is looked for

    Returns:
        how many failed
    """
    number = 0
    for place, (output, job) in enumerate(jobs, start=1):
        told: dict[str, object] = {"job": place, "output": output}
        try:
            if isinstance(job, LoraclrError):
                raise job
            told |= {"ok": True, **do(job)}
        except LoraclrError as error:
            told |= {"ok": False, "error": str(error)}
        except Exception as error:  # noqa: BLE001  (a night's work goes on, and the log has all of it)
            failed()
            told |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        number += not told["ok"]
        print(json.dumps(told, ensure_ascii=False), flush=True)
    return number
