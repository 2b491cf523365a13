"""Memory of a merge at the layer shapes of a real SD1.5, against the budget: shapes only, no weights.

    python -m bench.memory --concepts 12 --budget 512

Growth is counted from the moment model and LoRAs are loaded; Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lib_loraclr.merge import merge_loras
from lib_loraclr.output import MergeReport
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

from .shapes import SD15, ShapesHost, Watch, looking, random_lora

RANK = 16


def measure(
    host: ShapesHost, loras: Sequence[Path], budget: int, *, size: int, steps: int
) -> tuple[MergeReport, Watch]:
    """Merge, and watch."""
    concepts = tuple(Concept(str(path), trigger=f"word{i}") for i, path in enumerate(loras))
    recording = RecordingOptions(paths=2, steps=steps, height=size, width=size)
    request = MergeRequest(concepts, method="ridge", rank="8", memory_mb=budget, recording=recording)
    watch = Watch()
    with looking(watch):
        merge = merge_loras(request, host, watch)
    return merge.report, watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=12)
    parser.add_argument("--budget", type=int, default=512, help="MB")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=4, help="per denoising path")
    arguments = parser.parse_args()
    host = ShapesHost(SD15)
    with tempfile.TemporaryDirectory() as folder:
        loras = [
            random_lora(host, Path(folder) / f"lora{i}.safetensors", rank=RANK, seed=i)
            for i in range(arguments.concepts)
        ]
        report, watch = measure(host, loras, arguments.budget, size=arguments.size, steps=arguments.steps)
    print(
        f"{report.layers} layers, N = {arguments.concepts}, {arguments.size} px, {arguments.steps} steps, "
        f"budget {arguments.budget} MB: {report.rows} rows kept per layer and teacher"
    )
    for stage, peak in watch.peaks.items():
        print(f"  {stage.value:32} {peak:7.0f} MB beyond model and LoRAs")
    peak = max(watch.peaks.values())
    print(f"peak growth {peak:.0f} MB = {peak / arguments.budget:.2f} x budget")


if __name__ == "__main__":
    main()
