"""Merges that two processes do together, and what becomes of them when one of the two fails; run by `test_processes.py`.

    python -m tests.merge.merges_together FOLDER

It prints JSON: what each of the processes came to, by what they were asked to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras, stage_plan, stages
from lib_loraclr.model import ALONE, Group, Processes
from lib_loraclr.output import Merge, PreviewOptions, draw_pictures
from lib_loraclr.recording import examples
from lib_loraclr.refining import refinement
from tests import tiny_checkpoints as tiny
from tests.tiny_hosts import random_merge

OPTIONS = {"steps": 4, "batch_size": 3, "scenes": 2, "rollouts": 5, "learning_rate": 0.002}
LAYERS = {"effort": "layers"}


def write(merge: Merge, path: Path, pictures: bytes) -> None:
    factors = {
        f"{key}.{side}": getattr(f, side).contiguous() for key, f in merge.factors.items() for side in ("up", "down")
    }
    told = replace(merge.report, refinement={})
    save_file(factors, path, {"report": told.to_json(), "pictures": hashlib.sha256(pictures).hexdigest()})


def in_processes(count: int, run: Callable[[Processes], str]) -> list[str]:
    """What `run` says in each of so many processes, forked before any backward pass; of one that was killed, by what."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            try:
                processes = Group() if count > 1 else ALONE
                said = run(processes)
                processes.leave()
            except (LoraclrError, Interrupted) as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    found = []
    for child, reader in children:
        with open(reader, "rb") as stream:  # noqa: PTH123  (a file descriptor)
            said = stream.read().decode()
        ended = os.waitpid(child, 0)[1]
        found.append(said if ended == 0 else f"killed by {ended}")
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    stage_plan.MEASURE_PATHS, stage_plan.MEASURE_STEPS = 1, 2
    stage_plan.STOP_PATHS, stage_plan.STOP_STEPS = 1, 2
    stage_plan.RECORDED_PROMPTS = stages.RECORDED_PROMPTS = 16
    host = load(tiny.SD1.write(folder))
    asked = random_merge(folder, host, 1, 2, 3, options=OPTIONS, precision="fp32", rank="full")

    def merged(name: str, options: Mapping[str, object]) -> Callable[[Processes], str]:
        def run(processes: Processes) -> str:
            merge = merge_loras(replace(asked, options=options), host, processes=processes)
            pictures = draw_pictures(merge, host, PreviewOptions(steps=1, pairs=1), processes=processes)
            write(merge, folder / f"{name}{processes.rank}of{processes.count}", pictures.sheet.tobytes())
            return name

        return run

    def ends(place: ModuleType, name: str, do: Callable[[], None]) -> Callable[[Processes], str]:
        """One in which the second process does something in place of what it should."""

        def run(processes: Processes) -> str:
            if processes.rank == 1:
                setattr(place, name, lambda *_, **__: do())
            merge_loras(asked, host, processes=processes)
            return "went on"

        return run

    def fails() -> None:
        raise LoraclrError("The second one has had enough: give it a rest.")

    def interrupts() -> None:
        raise Interrupted

    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    said = {}
    for name, options in (("layers", LAYERS), ("refined", OPTIONS)):
        said[name] = [in_processes(count, merged(name, options)) for count in (1, 2)]
    for name, place, do in (
        ("fails", (refinement, "_loss"), fails),
        ("interrupts", (examples, "denoising_path"), interrupts),
        ("dies", (refinement, "_loss"), dies),
    ):
        begun = time.monotonic()
        said[name] = in_processes(2, ends(*place, do))
        said[f"{name} after"] = time.monotonic() - begun
    for name in ("layers", "refined"):
        said[f"{name} differ"] = [differences(folder / f"{name}0of1", folder / f"{name}{rank}of2") for rank in (0, 1)]
    sys.stdout.write(json.dumps(said) + "\n")


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest of the layers' relative differences, and of the concepts' retentions; and whether the pictures are the same."""
    factors, others = load_file(one), load_file(other)
    largest = 0.0
    for key in {name.rpartition(".")[0] for name in factors}:
        delta, else_ = (found[f"{key}.up"] @ found[f"{key}.down"] for found in (factors, others))
        largest = max(largest, float((delta - else_).norm() / delta.norm()))
    reports, pictures = [], []
    for path in (one, other):
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
        reports.append([told["merged"] for told in json.loads(metadata["report"])["concepts"]])
        pictures.append(metadata["pictures"])
    kept = max(abs(a - b) for a, b in zip(*reports, strict=True))
    return {"layer": largest, "retention": kept, "pictures": float(pictures[0] != pictures[1])}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
