"""Memory and time of a merge at the layer shapes of the real SD1.5 and SDXL: random LoRAs of rank 32, shapes only, no weights.

    python dev.py bench memory --architectures SDXL --concepts 2 4

Recording, the closed form, the hinge and the automatic rank run as in a merge; what the model itself takes does not count: it
only hands over inputs of the real sizes. Growth of memory is counted from the moment the LoRAs are loaded, in a process of its
own for every cell, so that none uses again what another let go of; Linux only. Beside it stands what the features take that the
authors' code keeps, from the shapes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from bench.cells import Cells
from bench.clock import Clock, watching
from bench.shapes import SD15, SDXL, Architecture, ShapesHost, random_lora
from bench.tables import markdown
from lib_loraclr.merge import merge_loras
from lib_loraclr.progress import Stage
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

RANK = 32
#: layer by layer, of text encoders and UNet together
RECORDING = (Stage.TEXT_INPUTS, Stage.UNET_INPUTS)
SOLVING = (Stage.TEXT_LAYERS, Stage.UNET_LAYERS)
ARCHITECTURES = {architecture.name: architecture for architecture in (SD15, SDXL)}
#: steps of the run that the authors' code records, all of whose rows it keeps, and bytes of a number
AUTHORS_STEPS, AUTHORS_BYTES = 20, 2


def merge(host: ShapesHost, folder: Path, number: int, budget: int) -> dict:
    """Merge `number` random LoRAs layer by layer, and tell what it took."""
    concepts = tuple(
        Concept(str(random_lora(host, folder / f"lora{i}.safetensors", rank=RANK, seed=i)), trigger=f"word{i}")
        for i in range(number)
    )
    # few and short paths: what they are for is the model's affair, and every one of 64 points a teacher is recorded
    recording = RecordingOptions(paths=8, steps=8)
    request = MergeRequest(concepts, options={"effort": "layers"}, memory_mb=budget, recording=recording)
    clock = Clock(loud=True)
    with watching(clock):
        merged = merge_loras(request, host, clock)
        clock.finish()
    result = sum(factors.rank * sum(factors.shape) for factors in merged.factors.values()) * 4 / 2**20
    stages = {stage.value: {"seconds": span.processor, "mb": span.peak} for stage, span in clock.spans.items()}
    told = {"layers": merged.report.layers, "rows": merged.report.rows, "rank": merged.report.rank[1]}
    return {**told, "result mb": result, "stages": stages, "features mb": authors_features(host) * number}


def authors_features(host: ShapesHost) -> float:
    """MB that one concept's features take where all rows of all steps are kept for every layer, as the authors' code does."""
    side = host.default_size // host.pixels_per_latent
    rows = host.rows_entering((side, side))
    numbers = sum(count * host.layers()[key].shape[1] for key, count in rows.items())
    return numbers * AUTHORS_STEPS * AUTHORS_BYTES / 2**20


def cell(architecture: Architecture, number: int, budget: int) -> dict:
    """`merge` by itself in a process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_in_a_process, (architecture.name, number, budget))


def _in_a_process(name: str, number: int, budget: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        return merge(ShapesHost(ARCHITECTURES[name], substitute=False), Path(folder), number, budget)


def publish(cells: Cells) -> None:
    """The table of all cells there are."""
    rows = []
    for path in sorted(cells, key=lambda path: (path.split("/")[0], int(path.split("/n")[1]))):
        found, (name, number) = cells.known(path), path.split("/n")

        def most(stages: tuple[Stage, ...], what: str, found: dict = found) -> float:
            values = [found["stages"][stage.value][what] for stage in stages if stage.value in found["stages"]]
            return sum(values) if what == "seconds" else max(values)

        memory = [f"{value:.0f}" for value in (most(RECORDING, "mb"), most(SOLVING, "mb"), found["result mb"])]
        times = [f"{most(stages, 'seconds'):.0f}" for stages in (RECORDING, SOLVING)]
        rank = f"{found['rank']:.0f} of {RANK * int(number)}"
        rows.append([name, number, found["rows"], *memory, f"{found['features mb']:.0f}", *times, rank])
    columns = ("", "concepts", "rows kept of each", "recording: peak MB", "solving: peak MB", "of that the result")
    columns += ("features the authors' code keeps, MB", "recording: s", "solving: s", "rank (mean)")
    title = "# Memory\n\nOf a merge at real layer shapes, beyond model and LoRAs, and processor seconds on one core; "
    cells.publish(f"{title}by `python dev.py bench memory`.\n\n{markdown(columns, rows)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--concepts", type=int, nargs="+", help="default: 2 4; --full: 2 4 8 12")
    parser.add_argument("--budget", type=int, default=MergeRequest(()).memory_mb, help="MB")


def main(arguments: argparse.Namespace) -> None:
    cells = Cells("memory", arguments.results)
    for name in arguments.architectures:
        for number in arguments.concepts or ([2, 4, 8, 12] if arguments.full else [2, 4]):
            asked = {"budget": arguments.budget, "rank": RANK}
            architecture = ARCHITECTURES[name]
            cells.measured(f"{name}/n{number}", asked, lambda a=architecture, n=number: cell(a, n, arguments.budget))
            publish(cells)
