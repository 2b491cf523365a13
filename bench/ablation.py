"""What each piece of the method is worth: one of them changed at a time, judged as in the part `quality`.

    python dev.py bench ablation
    python dev.py bench ablation --effort balanced --changes "as it is" "no scenes"

Four concepts that are not among the demo's first, called by the default templates. The sweep is the paper's Figure 8, layer by
layer: retention against margin and pull to the start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

from bench.bed import Bed
from bench.cells import Cells
from bench.clock import Clock
from bench.judge import Judge
from bench.losses import TermsFunction, info_nce, refining_with, triplet
from bench.plots import Axis, line_plot
from bench.protocol import BACKGROUNDS, Jury, Sizes, judged
from bench.tables import markdown, mean, share
from bench.world import demo_host, demo_names, demo_request
from lib_loraclr.merge import merge_loras
from lib_loraclr.request import MergeRequest
from lib_loraclr.solving import Procedure

LORAS = ("guitar", "octopus", "rocket", "cactus")
FULL = Sizes(one=32, unseen=8, two=48, regions=0, three=24)
USUAL = Sizes(one=8, unseen=4, two=16, regions=0, three=8)
MARGINS, PULLS = (0.25, 0.5, 1.0, 1.5, 2.0), (0.0, 0.001, 0.01, 0.1, 1.0)


def _options(**changes: object) -> Callable[[MergeRequest], MergeRequest]:
    return lambda request: replace(request, options={**request.options, **changes})


def _recording(**changes: int) -> Callable[[MergeRequest], MergeRequest]:
    return lambda request: replace(request, recording=replace(request.recording, **changes))


#: name of a change -> what it makes of the request
CHANGES: dict[str, Callable[[MergeRequest], MergeRequest]] = {
    "as it is": lambda request: request,
    "no scenes": _options(scenes=0, batch_size=12),
    "no scenes of its own": _options(rollouts=0),
    "no contrast": _options(contrast=0),
    "contrast 2": _options(contrast=2),
    "triplet loss": lambda request: request,
    "InfoNCE loss": lambda request: request,
    "no bank of phrases": lambda request: replace(request, prompts=replace(request.prompts, bank="none")),
    "half the paths, renoised points": _recording(paths=16, renoised=128),
    "no hinge in the layers": _options(negative=0),
    "no pull to the start": _options(lambda_delta=0),
    "learning rate halved": _options(learning_rate=0.0035),
    "learning rate doubled": _options(learning_rate=0.014),
    "rank 32": lambda request: replace(request, rank="32"),
    "twice the steps": lambda request: _options(steps=2 * _steps(request))(request),
}
#: what would take more than an hour together with the others
MORE = ("contrast 2", "learning rate halved", "learning rate doubled", "rank 32", "twice the steps")
LOSSES: dict[str, TermsFunction] = {"triplet loss": triplet, "InfoNCE loss": info_nce}


def _steps(request: MergeRequest) -> int:
    """How many a request would make."""
    return Procedure.of(request).refinement(len(request.concepts)).steps


class Bench:
    """What all cells share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.request, self.sprites = demo_request(arguments.loras, arguments.prompts)
        self.request = replace(self.request, options={"effort": arguments.effort})
        self.sizes, self._arguments = FULL if arguments.full else USUAL, arguments
        self._host, self._judge = demo_host(), Judge()
        self._bed: Bed | None = None

    def asked(self) -> dict[str, object]:
        own = self._arguments
        return {"loras": own.loras, "effort": own.effort, "prompts": own.prompts, "sizes": self.sizes.asked()}

    def change(self, name: str) -> dict:
        """One change, merged and judged."""
        clock = Clock()
        with refining_with(LOSSES[name]) if name in LOSSES else nullcontext():
            merge = merge_loras(CHANGES[name](self.request), self._host, clock)
        clock.finish()
        report = merge.report
        kept = [concept.merged for concept in report.concepts]
        jury = Jury(self._host, self._judge, self.sprites, self.sizes, backgrounds=BACKGROUNDS)
        with self._host.apply(merge.factors):
            found = judged(jury, None)
        own = {"retention": sum(kept) / len(kept), "base drift": report.base_drift, "rank": report.rank[1]}
        return found | own | {"seconds": clock.total().processor}

    def swept(self, margin: float, pull: float) -> dict:
        """Retention of one point of the sweep; the recordings are those of the others."""
        self._bed = self._bed or Bed(self.request, self._host)
        # enough steps for the margin to matter
        options = {"effort": "layers", "layer_steps": 20, "negative": 1.0, "margin": margin, "lambda_delta": pull}
        made = self._bed.merge("contrastive", options)
        retention = self._bed.retention(made.factors)
        return {"retention": retention.mean, "weakest": retention.weakest, **made.notes}


def publish(cells: Cells) -> None:
    parts = [
        f"# Ablation\n\n{__doc__.splitlines()[0]} By `python dev.py bench ablation`; shares with 95 % intervals.\n"
    ]
    rows = [_line(name, found) for name in CHANGES if (found := cells.known(_path(name))) is not None]
    if rows:
        columns = ("", "identity", "unseen words", "two: right / swapped / one twice", "three: parts right")
        parts.append(markdown((*columns, "retention", "base drift", "rank", "seconds"), rows) + "\n")
    sweep = {pull: _curve(cells, pull) for pull in PULLS}
    if any(len(points) > 1 for points in sweep.values()):
        lines = [[f"{pull:g}", *(f"{value:.3f}" for _, value in points)] for pull, points in sweep.items() if points]
        columns = ("λ_delta \\ margin", *(f"{margin:g}" for margin, _ in next(p for p in sweep.values() if p)))
        parts.append(f"## Retention by margin and pull, layer by layer\n\n{markdown(columns, lines)}\n")
        curves = {f"λ_delta {pull:g}": points for pull, points in sweep.items()}
        plot = line_plot("retention, layer by layer", Axis("margin"), Axis("retention"), curves)
        cells.publish(plot, "ablation-sweep.svg")
    cells.publish("\n".join(parts))


def _path(name: str) -> str:
    return f"changes/{name.replace(' ', '-').replace(',', '')}"


def _line(name: str, found: Mapping) -> list[str]:
    two = found["two"]
    rest = [f"{two[key][0] / two[key][1]:.2f}" for key in ("swapped", "twice")] if two["right"][1] else []
    outcomes = " / ".join([share([two["right"]]), *rest])
    told = [share([found["identity"]]), share([found["unseen"]]), outcomes, share([found["three"]["parts"]])]
    figures = [
        mean([found[key]], digits) for key, digits in (("retention", 3), ("base drift", 2), ("rank", 0), ("seconds", 0))
    ]
    return [name, *told, *figures]


def _curve(cells: Cells, pull: float) -> list[tuple[float, float]]:
    found = ((margin, cells.known(f"sweep/margin{margin:g}-pull{pull:g}")) for margin in MARGINS)
    return [(margin, figures["retention"]) for margin, figures in found if figures]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--loras", nargs="*", default=list(LORAS), choices=demo_names(12), metavar="NAME")
    parser.add_argument(
        "--changes", nargs="*", default=None, choices=CHANGES, metavar="NAME", help=f"--full: also {', '.join(MORE)}"
    )
    parser.add_argument("--effort", default=None, help="of every merge (default: fast; --full: balanced)")
    parser.add_argument("--prompts", choices=("demo", "default"), default="default")
    parser.add_argument("--no-sweep", action="store_true", help="leave the sweep of margin and pull out")


def main(arguments: argparse.Namespace) -> None:
    if arguments.changes is None:
        arguments.changes = [name for name in CHANGES if arguments.full or name not in MORE]
    arguments.effort = arguments.effort or ("balanced" if arguments.full else "fast")
    cells, bench = Cells("ablation", arguments.results), Bench(arguments)
    for name in arguments.changes:
        cells.measured(_path(name), bench.asked(), lambda name=name: bench.change(name))
        publish(cells)
        print(f"{name}: {cells.took(_path(name))['wall']:.0f} s", flush=True)
    for margin, pull in [] if arguments.no_sweep else [(m, p) for p in PULLS for m in MARGINS]:
        asked = {"loras": arguments.loras, "prompts": arguments.prompts}
        path = f"sweep/margin{margin:g}-pull{pull:g}"
        cells.measured(path, asked, lambda margin=margin, pull=pull: bench.swept(margin, pull))
    publish(cells)
