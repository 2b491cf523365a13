"""Time and memory of a merge at the layer shapes of the real SDXL: random LoRAs of rank 32, shapes only, no weights.

    python -m bench.sdxl --concepts 2 4 8 12

Recording, the closed form, the hinge and the automatic rank run as in a merge; what the model itself takes does not count: it
only hands over inputs of the real sizes. Growth of memory is counted from the moment the LoRAs are loaded, in a process of its
own for every number of concepts, so that none uses again what another let go of; Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_loraclr.merge import merge_loras
from lib_loraclr.output import MergeReport
from lib_loraclr.progress import Stage
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

from .shapes import SDXL, ShapesHost, Watch, looking, random_lora

RANK = 32
#: layer by layer, of text encoders and UNet together
RECORDING = (Stage.TEXT_INPUTS, Stage.UNET_INPUTS)
SOLVING = (Stage.TEXT_LAYERS, Stage.UNET_LAYERS)


class Clock(Watch):
    """Seconds of processor time of each stage besides, said when it ends; what else the machine does is not in them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[Stage, float] = {}
        self._since = time.process_time()

    def start(self, stage: Stage, total: int) -> None:
        self.finish()
        super().start(stage, total)

    def finish(self) -> None:
        now = time.process_time()
        if self.stage:
            self.seconds[self.stage] = now - self._since
            peak = self.peaks.get(self.stage, 0.0)
            print(f"  {self.stage.value:32} {self.seconds[self.stage]:7.1f} s {peak:7.0f} MB", flush=True)
        self._since = now


@dataclass(frozen=True)
class Run:
    """One merge.

    Attributes:
        concepts: how many
        report: of the merge
        result: MB of the merged factors, in fp32
        stages: stage -> seconds, and MB at most
    """

    concepts: int
    report: MergeReport
    result: float
    stages: dict[Stage, tuple[float, float]]

    def seconds(self, stages: Sequence[Stage]) -> float:
        """Of these stages together."""
        return sum(self.stages[stage][0] for stage in stages)

    def peak(self, stages: Sequence[Stage]) -> float:
        """The most MB in any of these stages."""
        return max(self.stages[stage][1] for stage in stages)


def merge(host: ShapesHost, folder: Path, number: int, budget: int) -> Run:
    """Merge `number` random LoRAs layer by layer."""
    concepts = tuple(
        Concept(str(random_lora(host, folder / f"lora{i}.safetensors", rank=RANK, seed=i)), trigger=f"word{i}")
        for i in range(number)
    )
    # few and short paths: what they are for is the model's affair, and every one of 64 points a teacher is recorded
    recording = RecordingOptions(paths=8, steps=8)
    request = MergeRequest(concepts, options={"effort": "layers"}, memory_mb=budget, recording=recording)
    clock = Clock()
    with looking(clock):
        merged = merge_loras(request, host, clock)
        clock.finish()
    result = sum(factors.rank * sum(factors.shape) for factors in merged.factors.values()) * 4 / 2**20
    stages = {stage: (seconds, clock.peaks.get(stage, 0.0)) for stage, seconds in clock.seconds.items()}
    return Run(number, merged.report, result, stages)


def run(number: int, budget: int) -> Run:
    """`merge` by itself in a process."""
    with tempfile.TemporaryDirectory() as folder:
        return merge(ShapesHost(SDXL, substitute=False), Path(folder), number, budget)


def table(runs: list[Run], budget: int) -> str:
    """Markdown; times relative to the first run's solve, memory relative to the budget."""
    columns = ("concepts", "rows", "recording: peak", "solving: peak", "of that the result")
    columns += ("recording: time", "solving: time", "rank (mean)")
    unit = runs[0].seconds(SOLVING)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for run in runs:
        memory = [f"{mb / budget:.2f}" for mb in (run.peak(RECORDING), run.peak(SOLVING), run.result)]
        times = [f"{run.seconds(stages) / unit:.2f}" for stages in (RECORDING, SOLVING)]
        rank = f"{run.report.rank[1]:.0f} of {RANK * run.concepts}"
        lines.append(f"| {run.concepts} | {run.report.rows} | {' | '.join(memory + times)} | {rank} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, nargs="+", default=[2, 4, 8, 12])
    parser.add_argument("--budget", type=int, default=MergeRequest(()).memory_mb, help="MB")
    arguments = parser.parse_args()
    print(
        f"{len(ShapesHost(SDXL).layers())} layers of SDXL, rank {RANK}, budget {arguments.budget} MB; "
        f"{torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}",
        flush=True,
    )
    processes = multiprocessing.get_context("spawn")
    runs = []
    for number in arguments.concepts:
        print(f"N = {number}", flush=True)
        with processes.Pool(1) as pool:
            runs.append(pool.apply(run, (number, arguments.budget)))
    print(table(runs, arguments.budget))


if __name__ == "__main__":
    main()
