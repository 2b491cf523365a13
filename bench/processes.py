"""A merge by one, two and four processes of one thread each: how many times as fast, and which time does not divide.

    python dev.py bench processes

Two of the demo's LoRAs at effort fast with few steps, by torchrun with gloo, the numbers of processes in turn. It asks for a
quiet machine; on two cores four processes can be twice as fast as one at most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch

from bench.cells import Cells, write
from bench.clock import Clock
from bench.judge import DEMO
from bench.tables import markdown
from bench.world import demo_request
from lib_loraclr.doors.cli.launched import join
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras
from lib_loraclr.progress import Stage
from lib_loraclr.request import MergeRequest

ROOT = Path(__file__).resolve().parents[1]
#: what is no stage of a merge: torch is imported, the checkpoint loaded, the processes meet and part
BEGINNING = "beginning and end"
#: figures of a stage in the first process, and its processor seconds and those of all
WALL, PROCESSOR = "wall", "processor"


def work(task: Path) -> None:
    """What each of the processes does; run by the launcher.

    Args:
        task: JSON with `checkpoint` and `request`; beside it each writes what it took
    """
    torch.set_num_threads(1)
    asked = json.loads(task.read_text("utf-8"))
    processes, clock = join(), Clock()
    with processes.failing():
        host = load(Path(asked["checkpoint"]))
        merge_loras(MergeRequest.from_dict(asked["request"]), host, clock, processes=processes)
        clock.finish()
    processes.leave()
    spans = {stage.value: asdict(span) for stage, span in clock.spans.items()}  # empty but for the first
    told = {"processes": processes.count, "stages": spans, PROCESSOR: time.process_time()}
    write(task.with_name(f"{processes.rank}.took.json"), json.dumps(told))


def together(count: int, checkpoint: Path, request: MergeRequest) -> dict:
    """One merge by so many processes: seconds of each stage in the first of them, and of all as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        write(task, json.dumps({"checkpoint": str(checkpoint), "request": request.to_dict()}))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        begun = time.perf_counter()
        subprocess.run(
            [*launcher, "-m", "bench.processes", str(task)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            check=True,
        )
        whole = time.perf_counter() - begun
        took = [json.loads((Path(folder) / f"{rank}.took.json").read_text("utf-8")) for rank in range(count)]
    if took[0]["processes"] != count:
        raise RuntimeError(f"{count} processes were asked for, and {took[0]['processes']} met")
    stages = {name: {WALL: span[WALL], PROCESSOR: span[PROCESSOR]} for name, span in took[0]["stages"].items()}
    return {"stages": stages, WALL: whole, PROCESSOR: sum(own[PROCESSOR] for own in took)}


def rows(measured: Mapping[int, Sequence[dict]]) -> list[list[str]]:
    """The table's rows: each stage, then the whole.

    Args:
        measured: number of processes -> what `together` said, of each time; with one process first
    """
    names = [stage.value for stage in Stage if stage.value in measured[1][0]["stages"]]
    alone = measured[1]
    found = []
    for name in [*names, BEGINNING, ""]:
        row = [name or "**in all**", f"{median(_wall(run, name) for run in alone):.1f}"]
        for count, runs in measured.items():
            if count > 1:
                walls = [_wall(run, name) for run in runs]
                # each beside the one before it, in the same minutes
                faster = median(_wall(one, name) / wall for one, wall in zip(alone, walls, strict=True) if wall)
                waited = f"{median(_waited(run, name) for run in runs):.1f}" if name in names else ""
                undivided = median(
                    (count * wall - _wall(one, name)) / (count - 1) for one, wall in zip(alone, walls, strict=True)
                )
                row += [f"{median(walls):.1f}", f"{faster:.2f}", waited, f"{undivided:.1f}"]
        found.append(row)
    return found


def _wall(run: dict, name: str) -> float:
    """Seconds that a person waits for a stage, for what is none, or for all of it where none is named."""
    if name in run["stages"]:
        return run["stages"][name][WALL]
    return run[WALL] - (sum(own[WALL] for own in run["stages"].values()) if name else 0.0)


def _waited(run: dict, name: str) -> float:
    """Seconds in which the first process had nothing to do, or no core to do it on."""
    own = run["stages"][name]
    return own[WALL] - own[PROCESSOR]


def table(measured: Mapping[int, Sequence[dict]]) -> str:
    """Seconds and ratios of every stage, and the processor seconds of all processes."""
    heads = ["", "1 process, s"]
    for count in measured:
        if count > 1:
            heads += [f"{count}, s", "times as fast", "first one waits, s", "not divided, s"]
    work_done = ", ".join(
        f"{median(run[PROCESSOR] for run in runs):.0f} by {count}" for count, runs in measured.items()
    )
    return f"{markdown(heads, rows(measured))}\n\nProcessor seconds of all processes together: {work_done}."


_EXPLAINED = (
    "Wall seconds of the first process, medians. *Not divided* is what would have to take as long with any number of processes "
    "for the stage to take what it took: `(n t_n - t_1) / (n - 1)`. Waiting, communication and work that each does for itself "
    "are in it, and with more processes than cores the cores that are missing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes; 1 is always among them"
    )
    parser.add_argument("--names", nargs="+", default=["fox-face", "penguin"], help="of the demo's LoRAs")
    parser.add_argument("--steps", type=int, default=12, help="of the refinement")
    parser.add_argument("--paths", type=int, default=8, help="recorded of each concept")
    parser.add_argument("--repeats", type=int, default=2, help="how often all numbers are measured in turn")


def main(arguments: argparse.Namespace) -> None:
    cells = Cells("processes", arguments.results)
    request, _ = demo_request(arguments.names, "default")
    options = {"effort": "fast", "steps": arguments.steps}
    recording = replace(request.recording, paths=arguments.paths)
    request = replace(request, method="contrastive", options=options, recording=recording)
    asked = {name: getattr(arguments, name) for name in ("names", "steps", "paths")} | {"cores": os.cpu_count()}
    measured: dict[int, list[dict]] = {count: [] for count in sorted({1, *arguments.counts})}
    for repeat in range(arguments.repeats):
        for count, runs in measured.items():
            name = f"n{len(arguments.names)}/{count}-processes/run{repeat}"
            figures = cells.measured(
                name,
                {**asked, "processes": count},
                lambda count=count: together(count, DEMO / "emoji-sd1.safetensors", request),
            )
            runs.append(figures)
            print(f"{name}: {figures[WALL]:.1f} s", flush=True)
    title = (
        f"# Processes\n\n{__doc__.splitlines()[0]} By `python dev.py bench processes` on {os.cpu_count()} cores: "
        f"{' and '.join(arguments.names)}, {arguments.steps} steps, {arguments.paths} paths of each, {arguments.repeats} times."
    )
    print(cells.publish(f"{title}\n\n{table(measured)}\n\n{_EXPLAINED}").read_text("utf-8"))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
