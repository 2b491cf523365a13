"""Time and memory of a merge at the layer shapes of the real SDXL: random LoRAs of rank 32, shapes only, no weights.

    python -m bench.sdxl --concepts 2 4 8 12

Recording, the closed form, the hinge and the automatic rank run as in a merge; what the model itself takes does not count: it
only hands over inputs of the real sizes. Growth of memory is counted from the moment the LoRAs are loaded; Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_loraclr.merge import merge_loras
from lib_loraclr.report import MergeReport
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

from .shapes import SDXL, ShapesHost, Watch, looking, random_lora

RANK = 32


class Clock(Watch):
    """Seconds of processor time of each stage besides, said when it ends; what else the machine does is not in them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._since = time.process_time()

    def start(self, stage: str, total: int) -> None:
        self.finish()
        super().start(stage, total)

    def finish(self) -> None:
        now = time.process_time()
        if self.stage:
            self.seconds[self.stage] = now - self._since
            peak = self.peaks.get(self.stage, 0.0)
            print(f"  {self.stage:32} {self.seconds[self.stage]:7.1f} s {peak:7.0f} MB", flush=True)
        self._since = now


@dataclass(frozen=True)
class Run:
    """One merge: how many concepts, what it reported, what it took."""

    concepts: int
    report: MergeReport
    clock: Clock

    def seconds(self, word: str) -> float:
        """Of the stages whose name begins with `word`, text encoders and UNet together."""
        return sum(seconds for stage, seconds in self.clock.seconds.items() if _part(stage, word))

    def peak(self, word: str) -> float:
        """The most MB in those stages."""
        return max(peak for stage, peak in self.clock.peaks.items() if _part(stage, word))


def _part(stage: str, word: str) -> bool:
    return stage.startswith(word) and stage.endswith(("text encoder", "UNet"))


def merge(host: ShapesHost, folder: Path, number: int, budget: int) -> Run:
    """Merge `number` random LoRAs layer by layer."""
    concepts = tuple(
        Concept(str(random_lora(host, folder / f"lora{i}.safetensors", rank=RANK, seed=i)), trigger=f"word{i}")
        for i in range(number)
    )
    # few and short paths: what they are for is the model's affair, and every one of 64 points a teacher is recorded
    recording = RecordingOptions(paths=8, steps=8)
    request = MergeRequest(concepts, options={"effort": "fast"}, memory_mb=budget, recording=recording)
    clock = Clock()
    with looking(clock):
        report = merge_loras(request, host, clock).report
        clock.finish()
    return Run(number, report, clock)


def table(runs: list[Run], budget: int) -> str:
    """Markdown; times relative to the first run's solve, memory relative to the budget."""
    head = "| concepts | rows | recording: peak | solving: peak | recording: time | solving: time | rank (mean) |"
    unit = runs[0].seconds("merging")
    lines = [head, "|" + "---|" * 7]
    for run in runs:
        memory = [f"{run.peak(word) / budget:.2f}" for word in ("recording", "merging")]
        times = [f"{run.seconds(word) / unit:.2f}" for word in ("recording", "merging")]
        rank = f"{run.report.rank[1]:.0f} of {RANK * run.concepts}"
        lines.append(f"| {run.concepts} | {run.report.rows} | {' | '.join(memory + times)} | {rank} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, nargs="+", default=[2, 4, 8, 12])
    parser.add_argument("--budget", type=int, default=MergeRequest(()).memory_mb, help="MB")
    arguments = parser.parse_args()
    host = ShapesHost(SDXL, substitute=False)
    print(
        f"{len(host.layers())} layers of SDXL, rank {RANK}, budget {arguments.budget} MB; "
        f"{torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}",
        flush=True,
    )
    runs = []
    for number in arguments.concepts:
        print(f"N = {number}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            runs.append(merge(host, Path(folder), number, arguments.budget))
        gc.collect()
        for stage, seconds in runs[-1].clock.seconds.items():
            print(
                f"  N = {number:2} {stage:32} {seconds:7.1f} s {runs[-1].clock.peaks.get(stage, 0):7.0f} MB", flush=True
            )
    print(table(runs, arguments.budget))


if __name__ == "__main__":
    main()
