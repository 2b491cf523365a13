"""Speed of solving one layer of the real size: our closed form and hinge against the authors' optimiser and L-BFGS fusion.

    python dev.py bench speed --shapes 1280x1280 --concepts 2 4

All solve the same problem, and the error that each reaches stands beside its time, `Σ ||X_i (ΔW - D_i)^T||² / Σ ||X_i D_i^T||²`:
the positive term of them all. Inputs are random, half of each row common to all concepts, with a spectrum that falls like a
power. Processor time on the threads that there are.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cells import Cells
from bench.clock import timed
from bench.plots import Axis, line_plot
from bench.refinement_step import compare_steps
from bench.tables import markdown
from lib_loraclr.model import Factors
from lib_loraclr.solving import LayerProblem, Recording, find_method

#: layers of SD1.5 (attention at 320 and 1280, its keys, a feed-forward layer) and of SDXL (attention, keys, feed-forward)
SHAPES = ("320x320", "1280x1280", "320x768", "1280x5120", "640x640", "1280x2048", "10240x1280")
DEFAULT_SHAPES = ("320x320", "320x768", "1280x1280")
#: who solves, and with which options of the method
SOLVERS: dict[str, tuple[str, dict[str, object]]] = {
    "closed form": ("ridge", {}),
    "LoRACLR layers": ("contrastive", {"effort": "layers"}),
    "RegMean": ("regmean", {}),
    "gradient fusion": ("gradient_fusion", {}),
    "LoRACLR as published": ("paper", {}),
}
OURS = ("closed form", "LoRACLR layers")
#: of inputs: how fast their spectrum falls, and the share of the energy that all concepts have in common
DECAY, COMMON = 1.0, 0.5


def synthetic(shape: tuple[int, int], concepts: int, *, rows: int, rank: int, seed: int = 0) -> LayerProblem:
    """A layer as a merge meets it, in fp32: deltas of that rank, and inputs alike in their strongest directions.

    Args:
        shape: `(d_out, d_in)`
        rows: of each concept; none of the base model, of which the others know nothing
    """
    generator, (d_out, d_in) = torch.Generator().manual_seed(seed), shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    spectrum = torch.arange(1, d_in + 1).float().pow(-DECAY / 2)
    spectrum = spectrum * (d_in / spectrum.square().sum()).sqrt()
    shared = draw(rows, d_in)
    recordings = []
    for active in ((i,) for i in range(concepts)):
        inputs = (COMMON**0.5 * shared + (1 - COMMON) ** 0.5 * draw(rows, d_in)) * spectrum
        rivals = tuple((j,) for j in range(concepts) if j not in active)
        recordings.append(Recording(inputs, active, 1.0, rivals))
    # as long as a trained LoRA beside a weight that is initialised as usual
    deltas = tuple(Factors(0.03 * draw(d_out, rank) / rank**0.5, draw(rank, d_in) / d_in**0.5) for _ in range(concepts))
    return LayerProblem("lora_unet_layer", deltas, tuple(recordings), draw(d_out, d_in) / d_in**0.5)


def error(problem: LayerProblem, delta: Factors) -> float:
    """What is lost of the concepts on their own inputs, relative; the base model's rows do not count."""
    lost = effect = 0.0
    for recording in problem.recordings:
        if recording.own:
            target = problem.target(recording.active)
            wanted = (recording.inputs @ target.down.mT) @ target.up.mT
            found = (recording.inputs @ delta.down.mT) @ delta.up.mT
            lost, effect = lost + float((found - wanted).square().sum()), effect + float(wanted.square().sum())
    return lost / effect


def solve(solver: str, asked: Mapping[str, int], shape: tuple[int, int]) -> dict:
    """One cell: seconds, and the error that is reached."""
    problem = synthetic(shape, asked["concepts"], rows=asked["rows"], rank=asked["rank"])
    name, options = SOLVERS[solver]
    method = find_method(name)
    result, span = timed(lambda: method.function(problem, method.options(**options)))
    if span.processor < 1:  # so short that the first call's warming up would be most of it
        result, span = timed(lambda: method.function(problem, method.options(**options)))
    return {"seconds": span.processor, "error": error(problem, result.factors), "notes": dict(result.notes)}


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of `log y` over `log x`, least squares."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    rising = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return rising / sum((x - mean_x) ** 2 for x, _ in logs)


class Size(NamedTuple):
    """What a layer's problem is made of."""

    concepts: int
    rows: int
    rank: int


def path(shape: str, size: Size, solver: str) -> str:
    return f"solve/{shape}/n{size.concepts}-rows{size.rows}-rank{size.rank}/{solver.replace(' ', '-')}"


def publish(cells: Cells, rows: int, rank: int) -> None:
    """Tables of all cells that there are, the cost's exponents, and plots.

    Args:
        rows, rank: of the tables; other numbers are for the exponents
    """
    parts = [f"# Speed\n\n{__doc__.splitlines()[0]} By `python dev.py bench speed`.\n"]
    for shape in SHAPES:
        found = _measured(cells, shape)
        numbers = sorted({own.concepts for own in found if (own.rows, own.rank) == (rows, rank)})
        if not numbers:
            continue
        columns = {n: found[Size(n, rows, rank)] for n in numbers}
        lines = [[solver, *(_told(columns[n].get(solver)) for n in numbers)] for solver in SOLVERS]
        heads = ["seconds (error)", *(f"N = {n}" for n in numbers)]
        title = f"## {shape.replace('x', ' × ')}, {rows} rows of each, rank {rank}"
        parts.append(f"{title}\n\n{markdown(heads, [line for line in lines if any(line[1:])])}\n")
        curves = {
            solver: [(float(n), own[solver]["seconds"]) for n, own in columns.items() if solver in own]
            for solver in SOLVERS
        }
        axes = Axis("concepts", logarithmic=True), Axis("seconds", logarithmic=True)
        cells.publish(line_plot(f"solving a layer of {shape}", *axes, curves), f"speed-{shape}.svg")
        parts.append(_exponents(found, Size(4, rows, rank), shape))
    cells.publish("\n".join(filter(None, [*parts, _steps(cells)])))


def _measured(cells: Cells, shape: str) -> dict[Size, dict[str, dict]]:
    """Size -> solver -> figures."""
    found: dict[Size, dict[str, dict]] = {}
    for name in cells:
        match = re.fullmatch(rf"solve/{shape}/n(\d+)-rows(\d+)-rank(\d+)/(.+)", name)
        if match:
            size, solver = Size(*map(int, match.groups()[:3])), match[4].replace("-", " ")
            found.setdefault(size, {})[solver] = cells.known(name)
    return found


def _told(figures: dict | None) -> str:
    return f"{figures['seconds']:.3g} ({figures['error']:.2g})" if figures else ""


def _exponents(found: Mapping[Size, Mapping[str, dict]], usual: Size, shape: str) -> str:
    """How ours grows with one number while the others stay as usual."""
    lines = []
    for solver in OURS:
        for field in Size._fields:
            sizes = sorted(size for size in found if size._replace(**{field: getattr(usual, field)}) == usual)
            points = [
                (float(getattr(size, field)), found[size][solver]["seconds"]) for size in sizes if solver in found[size]
            ]
            if len(points) > 2:
                told = ", ".join(f"{x:g}: {y:.3g} s" for x, y in points)
                lines.append([solver, field, told, f"{exponent(points):.2f}"])
    if not lines:
        return ""
    heads = ("", "with", "measured", "exponent")
    return f"### How the cost grows, {shape.replace('x', ' × ')}\n\n{markdown(heads, lines)}\n"


def _steps(cells: Cells) -> str:
    figures = cells.known("step/SD1.5")
    if not figures:
        return ""
    rows = [
        [rank, way, own["seconds"], own["mb"], own["operations"]]
        for rank, ways in figures.items()
        if rank.startswith("rank")
        for way, own in ways.items()
        if way != "ratios"
    ]
    told = f"{figures['samples']} samples of {figures['side']} × {figures['side']} latents"
    return f"## A step of the refinement, SD1.5's shapes, {told}\n\n{markdown(('', '', 'seconds', 'MB', 'operations'), rows)}\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help=f"default: {' '.join(DEFAULT_SHAPES)}; --full: all")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), metavar="NAME")
    parser.add_argument("--concepts", type=int, nargs="+", default=[2, 4, 8, 12])
    parser.add_argument("--alone", type=int, nargs="*", default=[24, 48], help="of ours only")
    parser.add_argument("--rows", type=int, default=256, help="of each concept")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--swept", default="1280x1280", choices=SHAPES, help="layer whose cost is followed with rows and rank"
    )
    parser.add_argument("--steps", action="store_true", help="a step of the refinement too (8 GB of memory)")


def main(arguments: argparse.Namespace) -> None:
    cells, usual = Cells("speed", arguments.results), Size(4, arguments.rows, arguments.rank)

    def measure(shape: str, solver: str, size: Size) -> None:
        name, asked = path(shape, size, solver), size._asdict()
        sides = tuple(int(side) for side in shape.split("x"))
        figures = cells.measured(name, asked, lambda: solve(solver, asked, sides))
        print(f"{name}: {figures['seconds']:.3g} s, error {figures['error']:.3g}", flush=True)

    for shape in arguments.shapes or (SHAPES if arguments.full else DEFAULT_SHAPES):
        for number in (*arguments.concepts, *arguments.alone):
            for solver in arguments.solvers:
                if number in arguments.concepts or solver in OURS:
                    measure(shape, solver, usual._replace(concepts=number))
        publish(cells, arguments.rows, arguments.rank)
    for solver in [solver for solver in arguments.solvers if solver in OURS]:
        for size in _around(usual):
            measure(arguments.swept, solver, size)
    if arguments.steps or arguments.full:
        cells.measured("step/SD1.5", {"small": False}, lambda: compare_steps("cpu", False))
    publish(cells, arguments.rows, arguments.rank)


def _around(usual: Size) -> list[Size]:
    """Other numbers of rows, and other ranks."""
    rows = [usual._replace(rows=max(1, int(usual.rows * factor))) for factor in (0.5, 1, 2, 4)]
    return [*rows, *(usual._replace(rank=max(1, int(usual.rank * factor))) for factor in (0.25, 0.5, 1, 2))]
