"""Quality on the demo world, judged by a classifier that the product never sees.

    python dev.py bench quality
    python dev.py bench quality --sets n4 --rows "LoRACLR balanced" "average" --seeds 0 1 2
    python dev.py bench quality --sets n4 --rows --file "one LoRA for all"=trained.safetensors

The paper's Table 1 for all that people would use instead: identity, alignment, two and three concepts in one picture, by one
prompt and by one for each half, and what a merge keeps by its own measure. Protocol: demo/README.md, "Judge".
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.bed import Bed
from bench.cells import Cells
from bench.clock import Span, timed
from bench.judge import Judge
from bench.plots import Axis, line_plot
from bench.protocol import BACKGROUNDS, Drawer, Jury, Sizes, judged, single_figures
from bench.rows import ALONE, BASE, DRAWN, LINES, ROWS, SCALES, SLOW, Drawn, Given, Row
from bench.tables import markdown, mean, outcomes, share
from bench.world import Sprite, demo_host, demo_names, demo_request
from lib_loraclr.model import Host
from lib_loraclr.progress import Stage

#: set of LoRAs -> their names: the first so many of the demo's, two of one class, and four besides the first four: what holds of
#: those alone would be tuned to them
SETS: dict[str, tuple[str, ...]] = {
    **{f"n{number}": tuple(demo_names(number)) for number in (2, 4, 8, 12)},
    "alike": ("pizza", "hamburger"),
    "others": ("guitar", "octopus", "rocket", "cactus"),
}
DEFAULT_SETS, ALL_SETS = ("n2", "n4"), tuple(SETS)
FULL = Sizes(one=32, unseen=16, two=64, regions=64, three=48)


class Table:
    """One set of LoRAs and one seed: what its rows share, made when a row first needs it."""

    def __init__(self, name: str, seed: int, arguments: argparse.Namespace, host: Host, judge: Judge) -> None:
        self._prompts, self._names = arguments.prompts, SETS[name]
        request, self.sprites = demo_request(self._names, arguments.prompts)
        self._request, self._host, self._judge = replace(request, seed=seed), host, judge
        self.sizes, self._backgrounds, self._seed = arguments.sizes, arguments.backgrounds, seed
        self._rows: dict[str, Row | Drawn | Given] = {**ROWS, **DRAWN, **arguments.files}
        self._bed: Bed | None = None
        self._alone: tuple[dict, list[Tensor]] | None = None

    @property
    def bed(self) -> Bed:
        if self._bed is None:
            self._bed = Bed(self._request, self._host)
        return self._bed

    def asked(self, row: str) -> dict[str, object]:
        """What a cell's figures depend on."""
        own = self._rows[row].asked() if row in self._rows else {}
        pictures = {"sizes": self.sizes.asked(), "backgrounds": list(self._backgrounds)}
        return {"loras": list(self._names), "seed": self._seed, "prompts": self._prompts, **pictures, **own}

    def figures(self, row: str) -> dict:
        """One cell."""
        if row == ALONE:
            return self.alone()[0]
        if row == BASE:
            return judged(self._jury(self.sprites), self.alone()[1])
        kind = self._rows[row]
        return self._drawn(kind) if isinstance(kind, Drawn) else self._merged(kind)

    def _merged(self, kind: Row | Given) -> dict:
        made, spans, chosen = (kind.made(self._host), {}, {}) if isinstance(kind, Given) else kind.made(self.bed)
        took = sum(spans.values(), Span())
        retention = self.bed.retention(made.factors)
        with self._host.apply(made.factors):
            found = judged(self._jury(self.sprites), self.alone()[1])
        own = {"retention": retention.mean, "weakest retention": retention.weakest, "base drift": retention.base_drift}
        stages = {stage.value: span.processor for stage, span in spans.items()}
        times = {"seconds": took.processor, "wall": took.wall, "stages": stages} if spans else {}
        return found | own | times | {"rank": made.rank, "notes": dict(made.notes), "chosen": chosen}

    def _drawn(self, kind: Drawn) -> dict:
        """Seconds are those before the first picture; there is no model of which retention could be told."""
        references = self.alone()[1]  # first, as a way to draw may change what the host does
        with ExitStack() as stack:
            draw, span = timed(lambda: stack.enter_context(kind.drawer(self.bed, self.sprites, self._seed)))
            found = judged(self._jury(self.sprites, draw), references)
        return found | {"seconds": span.processor, "wall": span.wall}

    def alone(self) -> tuple[dict, list[Tensor]]:
        """Every LoRA by itself: its figures, and what its pictures are to the judge."""
        if self._alone is None:
            singles, unseen, embeddings = [], [], []
            for sprite, deltas in zip(self.sprites, self._own_deltas(), strict=True):
                with self._host.apply(deltas), torch.no_grad():
                    jury = self._jury([sprite])
                    figures, embedded = jury.one(sprite)
                    singles.append(figures)
                    embeddings.append(embedded)
                    unseen.append(jury.unseen(sprite))
            self._alone = single_figures(singles, unseen) | {"alignment": 1.0}, embeddings
        return self._alone

    def _own_deltas(self) -> list[dict]:
        """In the order of the sprites; a bed has them in an order of its own."""
        by_words = {lora.concept.trigger: lora.deltas for lora in self.bed.inputs}
        return [by_words[sprite.words] for sprite in self.sprites]

    def _jury(self, sprites: Sequence[Sprite], draw: Drawer | None = None) -> Jury:
        options = {"backgrounds": self._backgrounds, "seed": self._seed, "draw": draw}
        return Jury(self._host, self._judge, sprites, self.sizes, **options)


def run(arguments: argparse.Namespace, cells: Cells) -> None:
    """Measure every cell that is not there yet, and publish what there is after each set."""
    host, judge = demo_host(), Judge()
    for name in arguments.sets:
        for seed in arguments.seeds:
            table = Table(name, seed, arguments, host, judge)
            for row in (*arguments.rows, *arguments.files):
                path = cell(name, seed, row)
                new = cells.known(path, table.asked(row)) is None
                figures = cells.measured(path, table.asked(row), lambda row=row, table=table: table.figures(row))
                if new:
                    identity = figures["identity"]
                    print(f"{path}: identity {identity[0]}/{identity[1]}, {cells.took(path)['wall']:.0f} s", flush=True)
        publish(cells)


def cell(name: str, seed: int, row: str) -> str:
    return f"{name}/seed{seed}/{row.replace(' ', '-')}"


#: part of a merge -> its stages
PARTS = {
    "recording": (Stage.RECORDING, Stage.TEXT_INPUTS, Stage.UNET_INPUTS, Stage.HOLDING_BACK),
    "solving": (Stage.TEXT_LAYERS, Stage.UNET_LAYERS),
    "refining": (Stage.REFINING,),
    "cutting the rank": (Stage.CUTTING,),
}
COLUMNS = (
    *("", "identity", "weakest", "cosine", "alignment", "background", "unseen words"),
    *("two: right / swapped / one twice / neither", "by regions: both right", "three: parts right"),
    *("retention (weakest)", "base drift", "seconds"),
)


def publish(cells: Cells) -> None:
    """All tables and plots, of all cells that there are, whatever this run measured."""
    parts = [
        f"# Quality\n\n{__doc__.splitlines()[0]} Made by `python dev.py bench quality`; shares with 95 % intervals.\n"
    ]
    for name, loras in SETS.items():
        rows = [line for row in (*LINES, *_given(cells, name)) if (line := _line(cells, name, row))]
        if rows:
            parts.append(f"## {name}: {', '.join(loras)}\n\n{markdown(COLUMNS, rows)}\n")
        times = [line for row in ROWS if (line := _times(cells, name, row))]
        if times:
            parts.append(f"Where the time goes:\n\n{markdown(('', *PARTS, 'seconds'), times)}\n")
    parts.append(_legend())
    cells.publish("\n".join(parts))
    for figure, column in (("identity", "identity"), ("two", "two in one picture, both right")):
        lines = {row: _curve(cells, row, figure) for row in LINES if row != BASE}
        lines = {row: points for row, points in lines.items() if len(points) > 1}
        if lines:
            best = dict(sorted(lines.items(), key=lambda item: -item[1][-1][1])[:12])
            plot = line_plot(column, Axis("concepts"), Axis("share", bounds=(0.0, 1.0)), best)
            cells.publish(plot, f"quality-{figure}.svg")


def _cells_of(cells: Cells, name: str, row: str) -> list[dict]:
    """One per seed."""
    seeds = sorted({int(path.split("/")[1].removeprefix("seed")) for path in cells if path.startswith(f"{name}/")})
    return [found for seed in seeds if (found := cells.known(cell(name, seed, row))) is not None]


def _given(cells: Cells, name: str) -> list[str]:
    """The rows of files that were made elsewhere."""
    known = {row.replace(" ", "-") for row in LINES}
    rows = {path.rpartition("/")[2] for path in cells if path.startswith(f"{name}/")} - known
    return sorted(row.replace("-", " ") for row in rows)


def _line(cells: Cells, name: str, row: str) -> list[str] | None:
    found = _cells_of(cells, name, row)
    if not found:
        return None

    def of(key: str, digits: int = 2) -> str:
        return mean([own.get(key) for own in found], digits)

    retention = f"{of('retention', 3)} ({of('weakest retention', 3)})" if of("retention") else ""
    return [
        row,
        share([own["identity"] for own in found]),
        *(of(key) for key in ("weakest", "cosine", "alignment")),
        share([own["background"] for own in found]),
        share([own["unseen"] for own in found]),
        outcomes([own.get("two") for own in found]),
        share([own["regions"]["right"] for own in found if own.get("regions")]),
        share([own["three"]["parts"] for own in found if own.get("three")]),
        retention,
        of("base drift"),
        of("seconds", 0),
    ]


def _times(cells: Cells, name: str, row: str) -> list[str] | None:
    """Shares of a merge's parts, where any was recorded."""
    found = [own["stages"] for own in _cells_of(cells, name, row) if Stage.RECORDING.value in own.get("stages", {})]
    if not found:
        return None
    shares = [
        mean([sum(own.get(stage.value, 0.0) for stage in stages) / sum(own.values()) for own in found])
        for stages in PARTS.values()
    ]
    return [row, *shares, mean([sum(own.values()) for own in found], 0)]


def _curve(cells: Cells, row: str, figure: str) -> list[tuple[float, float]]:
    points = []
    for number in (2, 4, 8, 12):
        found = [own[figure] for own in _cells_of(cells, f"n{number}", row) if own.get(figure)]
        shares = [own["right"] if figure == "two" else own for own in found]
        shares = [pair[0] / pair[1] for pair in shares if pair[1]]
        if shares:
            points.append((float(number), sum(shares) / len(shares)))
    return points


_LEGEND = """\
*Identity*: share of pictures of one concept that the judge takes for it, of 48 (chance 1/48); *weakest*: of the concept
recognised least. *Cosine*: with the concept's prototype. *Alignment*: cosine with what the concept's own LoRA draws in the
same words on the same seed. *Background*: the colour asked for is drawn. *Unseen words*: identity in words that are neither in
templates nor in the bank. *By regions*: each half has a prompt of its own. *Retention* and *base drift*: docs/method.md.
*Seconds*: processor time of one merge on one core, the teachers' paths included where it needs them; of a way to draw (P+, OMG),
what comes before the first picture. Where a source tunes a scale on validation data, it is the one of {scales} with the highest
retention; kohya's SVD has a rank of 64 instead of 4; nothing else is tuned.
"""


def _legend() -> str:
    scales = ", ".join(str(scale) for scale in SCALES)
    lines = [
        f"- **{row}**: {own.origin}" + (f"; {dict(own.options)}" if own.options else "")
        for row, own in {**ROWS, **DRAWN}.items()
    ]
    return "\n".join([_LEGEND.format(scales=scales), *lines])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = [row for row in LINES if row not in SLOW]
    parser.add_argument("--sets", nargs="+", choices=ALL_SETS, help=f"of LoRAs (default: {' '.join(DEFAULT_SETS)})")
    parser.add_argument("--rows", nargs="*", default=None, choices=LINES, metavar="ROW")
    parser.add_argument(
        "--file", action="append", default=[], metavar="NAME=PATH", help="a row for a LoRA that holds them all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of merges and pictures (default: 0)")
    parser.add_argument("--prompts", choices=("demo", "default"), default="default", help="templates that are recorded")
    parser.add_argument("--backgrounds", nargs="+", default=list(BACKGROUNDS), metavar="COLOUR", help="judged on")
    for name, number in Sizes().asked().items():
        parser.add_argument(f"--{name}", type=int, help=f"pictures (default: {number}; --full: {FULL.asked()[name]})")
    parser.set_defaults(default_rows=defaults)


def _named_file(text: str) -> tuple[str, Given]:
    """`NAME=PATH`, whose name becomes that of a cell."""
    name, _, path = text.partition("=")
    if not (re.fullmatch(r"[\w ,+.]+", name) and Path(path).is_file()):
        raise SystemExit(
            f"--file {text}: write NAME=PATH, with a name of letters, digits and spaces, and a file that is there."
        )
    return name, Given(Path(path))


def main(arguments: argparse.Namespace) -> None:
    full = arguments.full
    arguments.sets = arguments.sets or (ALL_SETS if full else DEFAULT_SETS)
    arguments.seeds = arguments.seeds or ([0, 1, 2] if full else [0])
    if arguments.rows is None:
        arguments.rows = list(LINES) if full else arguments.default_rows
    arguments.files = dict(_named_file(text) for text in arguments.file)
    sizes = (FULL if full else Sizes()).asked()
    asked = {name: getattr(arguments, name) for name in sizes if getattr(arguments, name) is not None}
    arguments.sizes = Sizes(**{**sizes, **asked})
    run(arguments, Cells("quality", arguments.results))
