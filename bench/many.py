"""Many concepts in one file: what is left of each as their number grows, merged at once and in groups.

    python dev.py bench many --numbers 4 8 12 --ways flat groups
    python dev.py bench many --numbers 24 --more more.json --efforts balanced
    python dev.py bench many --numbers 12 --ways flat added --efforts balanced

*Flat*: all at once. *Groups*: so many at a time, and what came out joined; the teachers are each LoRA itself there too. *Added*:
the last one to a finished merge of all others, which was there and is not counted in what it takes. The demo has twelve concepts;
`--more` names others of its checkpoint, in a list like `demo/concepts.json`, with files relative to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from bench.cells import Cells
from bench.clock import Clock, Span
from bench.judge import DEMO, Judge
from bench.plots import Axis, line_plot
from bench.protocol import Jury, Sizes, single_figures
from bench.tables import markdown, mean, outcomes, share
from bench.world import Sprite, demo_host
from lib_loraclr.errors import LoraclrError
from lib_loraclr.merge import Finished, Start, merge_loras
from lib_loraclr.model import Host
from lib_loraclr.output import Merge, file_size
from lib_loraclr.request import Concept, MergeRequest

WAYS = ("flat", "groups", "added")
EFFORTS = ("fast", "balanced", "thorough")
COLUMNS = (
    *("", "identity", "weakest", "unseen words", "two: right / swapped / one twice / neither", "retention (weakest)"),
    *("rank, mean (largest)", "MB", "seconds"),
)


def subjects(paths: Sequence[Path]) -> list[tuple[Concept, Sprite]]:
    """The subjects of lists like the demo's, in their order, with what the judge knows them by.

    Raises:
        LoraclrError: one of their files is not there
    """
    found = []
    for path in paths:
        for entry in json.loads(path.read_text("utf-8")):
            if entry.get("kind", "subject") != "subject":
                continue
            file, words = path.parent / entry["file"], f"{entry['trigger']} {entry['class']}"
            if not file.is_file():
                raise LoraclrError(f"{path} names {entry['file']}, which is not there: train it, or take it out.")
            found.append((Concept(str(file), trigger=words), Sprite(entry["name"], words)))
    return found


def parts_of(way: str, number: int, group: int) -> list[int]:
    """How many concepts are merged by themselves before all are: of each part; none where all are merged at once.

    Args:
        way: of `WAYS`
        group: how many are merged at a time, in groups
    """
    if way == "groups":
        return [min(group, number - first) for first in range(0, number, group)]
    return [number - 1] if way == "added" else []


def merged(request: MergeRequest, host: Host, parts: Sequence[int], *, counted: bool = True) -> tuple[Merge, Span]:
    """A merge of all the request's concepts, and what it took.

    Args:
        parts: as of `parts_of`
        counted: whether what the parts took is counted
    """
    took, finished, first = Span(), [], 0

    def merge(own: MergeRequest, start: Start | None = None) -> tuple[Merge, Span]:
        clock = Clock()
        made = merge_loras(own, host, clock, start=start)
        clock.finish()
        return made, sum(clock.spans.values(), Span())

    for number in parts:
        own, span = merge(replace(request, concepts=request.concepts[first : first + number]))
        finished.append(Finished(own.factors, frozenset(concept.label for concept in own.request.concepts)))
        first += number
        took += span if counted else Span()
    made, span = merge(request, Start(tuple(finished)) if finished else None)
    return made, took + span


def figures(
    request: MergeRequest, host: Host, judge: Judge, sprites: Sequence[Sprite], sizes: Sizes, way: str, group: int
) -> dict:
    """One cell."""
    parts = parts_of(way, len(request.concepts), group)
    merge, took = merged(request, host, parts, counted=way != "added")
    with host.apply(merge.factors), torch.no_grad():
        jury = Jury(host, judge, sprites, sizes, seed=request.seed)
        singles = [jury.one(own)[0] for own in sprites]
        found = single_figures(singles, [jury.unseen(own) for own in sprites])
        found |= {"two": jury.together(2)}
    kept = [told.merged for told in merge.report.concepts]
    _, rank, largest = merge.report.rank
    size = {"rank": rank, "largest rank": largest, "bytes": file_size(merge)}
    return found | size | {"retention": kept, "seconds": took.processor}


def cell(number: int, way: str, effort: str, seed: int) -> str:
    return f"n{number}/{way}-{effort}/seed{seed}"


def publish(cells: Cells) -> None:
    """The table and the plot, of all cells that there are."""
    found: dict[tuple[str, int], list[dict]] = {}
    for name in cells:
        number, way, _ = name.split("/")
        found.setdefault((way, int(number.removeprefix("n"))), []).append(cells.known(name))
    rows, lines = [], {}
    for (way, number), own in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        rows.append(_row(f"{number}, {way.replace('-', ', ')}", own))
        shares = [pair[0] / pair[1] for pair in (figures["identity"] for figures in own)]
        lines.setdefault(way.replace("-", ", "), []).append((float(number), sum(shares) / len(shares)))
    cells.publish(
        f"# Many concepts\n\n{__doc__.splitlines()[0]} By `python dev.py bench many`.\n\n{markdown(COLUMNS, rows)}"
    )
    lines = {way: points for way, points in lines.items() if len(points) > 1}
    if lines:
        plot = line_plot("identity", Axis("concepts", logarithmic=True), Axis("share", bounds=(0.0, 1.0)), lines)
        cells.publish(plot, "many-identity.svg")


def _row(name: str, found: Sequence[dict]) -> list[str]:
    kept = [sum(own["retention"]) / len(own["retention"]) for own in found]
    return [
        name,
        share([own["identity"] for own in found]),
        mean([own["weakest"] for own in found]),
        share([own["unseen"] for own in found]),
        outcomes([own["two"] for own in found]),
        f"{mean(kept, 3)} ({mean([min(own['retention']) for own in found], 3)})",
        f"{mean([own['rank'] for own in found], 0)} ({max(own['largest rank'] for own in found)})",
        mean([own["bytes"] / 2**20 for own in found], 1),
        mean([own["seconds"] for own in found], 0),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--numbers", type=int, nargs="+", default=[4, 8, 12], help="of concepts")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["flat"])
    parser.add_argument("--efforts", nargs="+", choices=EFFORTS, default=["fast"])
    parser.add_argument("--group", type=int, default=4, help="how many are merged at a time, in groups")
    parser.add_argument("--more", type=Path, nargs="+", default=[], metavar="FILE", help="lists of further concepts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of merges and pictures")
    for name, number in (("one", 8), ("unseen", 4), ("two", 72)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"pictures (default: {number})")


def main(arguments: argparse.Namespace) -> None:
    known = subjects([DEMO / "concepts.json", *arguments.more])
    if max(arguments.numbers) > len(known):
        raise SystemExit(
            f"--numbers {max(arguments.numbers)}: {len(known)} concepts are known; name others with --more."
        )
    cells, host, judge = Cells("many", arguments.results), demo_host(), Judge()
    sizes = Sizes(one=arguments.one, unseen=arguments.unseen, two=arguments.two, regions=0, three=0)
    whole = MergeRequest.from_json((DEMO / "all-twelve.json").read_text("utf-8"))
    whole = replace(whole, prompts=MergeRequest(()).prompts)
    for number in arguments.numbers:
        concepts, sprites = zip(*known[:number], strict=True)
        files = [hashlib.sha256(Path(concept.lora).read_bytes()).hexdigest() for concept in concepts]
        for way, effort, seed in product(arguments.ways, arguments.efforts, arguments.seeds):
            group = arguments.group if way == "groups" else 0
            request = replace(whole, concepts=concepts, seed=seed, options={**whole.options, "effort": effort})
            name, asked = cell(number, way, effort, seed), {"loras": files, "group": group, "sizes": sizes.asked()}
            found = cells.measured(name, asked, partial(figures, request, host, judge, sprites, sizes, way, group))
            print(f"{name}: identity {found['identity'][0]}/{found['identity'][1]}", flush=True)
        publish(cells)
