"""Quality on the demo world, judged by a classifier that the product never sees: the tables in the README.

    python -m bench.quality --concepts 4 --pictures 64 --pairs 64 --triples 64 --results bench/results/quality-4.json
    python -m bench.quality --loras guitar octopus rocket cactus --prompts default

Rows that the results file already has are not run again. Protocol: demo/README.md, "Judge". Of a picture with two concepts
it is told whether both are right, swapped, one is there twice, or anything else; of one with three, how many thirds are right.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import torch

from bench.judge import DEMO, Judge
from lib_loraclr.doors.cli.console import ConsoleProgress
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras
from lib_loraclr.model import Factors, Host
from lib_loraclr.recording import load_inputs, sample
from lib_loraclr.request import Concept, MergeRequest

BACKGROUNDS = ("white", "green", "yellow", "purple")
STEPS, GUIDANCE, SEED = 16, 4.0, 10_000
#: row of the table -> method and its options; None: no merge
ROWS: dict[str, tuple[str, dict] | None] = {
    "each LoRA alone": None,
    "base model": None,
    "all tags together": ("weighted_sum", {}),
    "average": ("average", {}),
    "as published": ("paper", {}),
    "closed form": ("ridge", {}),
    "LoRACLR layers": ("contrastive", {"effort": "layers"}),
    "LoRACLR fast": ("contrastive", {"effort": "fast"}),
    "LoRACLR balanced": ("contrastive", {"effort": "balanced"}),
    "LoRACLR thorough": ("contrastive", {"effort": "thorough"}),
}


@dataclass(frozen=True)
class Sprite:
    """A concept of the demo world: the judge's name for it, and the words that call it."""

    name: str
    words: str


def interval(successes: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.96
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


@torch.no_grad()
def identities(
    host: Host, judge: Judge, sprite: Sprite, count: int, backgrounds: Sequence[str] = BACKGROUNDS
) -> tuple[list[float], list[float]]:
    """Per picture: whether the judge takes it for the sprite, and the cosine."""
    prompts = [f"a photo of a {sprite.words} on a {backgrounds[k % len(backgrounds)]} background" for k in range(count)]
    seeds = range(SEED, SEED + count)
    latents = sample(host, prompts, seeds, size=(128, 128), steps=STEPS, guidance=GUIDANCE)
    right, cosine = judge.identity(host.decode(latents), sprite.name)
    return right.tolist(), cosine.tolist()


@dataclass(frozen=True)
class Together:
    """What the judge sees in pictures with several concepts side by side.

    Attributes:
        named: per picture, the sprites that its prompt names, left to right
        seen: per picture, those that the judge takes its parts for
    """

    named: tuple[tuple[str, ...], ...]
    seen: tuple[tuple[str, ...], ...]

    def parts_right(self) -> list[float]:
        """Per part of each picture: whether it is the sprite named there."""
        return [float(a == b) for named, seen in self._pictures() for a, b in zip(named, seen, strict=True)]

    def told(self) -> dict[str, float]:
        """Shares of the pictures with two: both right, swapped, one of them twice, anything else."""
        kinds = [_kind(named, seen) for named, seen in self._pictures()]
        return {kind: kinds.count(kind) / max(1, len(kinds)) for kind in ("right", "swapped", "twice", "neither")}

    def _pictures(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        return list(zip(self.named, self.seen, strict=True))


def _kind(named: tuple[str, ...], seen: tuple[str, ...]) -> str:
    if seen == named:
        return "right"
    if seen == named[::-1]:
        return "swapped"
    return "twice" if seen[0] == seen[1] and seen[0] in named else "neither"


@torch.no_grad()
def side_by_side(
    host: Host,
    judge: Judge,
    sprites: Sequence[Sprite],
    width: int,
    count: int,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> Together:
    """`count` pictures of `width` concepts each, as wide as so many native ones; every order of them in turn."""
    orders = list(permutations(sprites, width)) if count else []
    chosen = [orders[k * len(orders) // count if count < len(orders) else k % len(orders)] for k in range(count)]
    prompts = [f"{_listed(row)} on a {backgrounds[k % len(backgrounds)]} background" for k, row in enumerate(chosen)]
    seen = []
    for start in range(0, count, 8):
        asked = prompts[start : start + 8]
        seeds = range(SEED + start, SEED + start + len(asked))
        latents = sample(host, asked, seeds, size=(128, 128 * width), steps=STEPS, guidance=GUIDANCE)
        for picture in host.decode(latents):
            parts = [picture.crop((128 * k, 0, 128 * (k + 1), 128)) for k in range(width)]
            seen.append(tuple(judge.nearest(parts)))
    return Together(tuple(tuple(sprite.name for sprite in row) for row in chosen), tuple(seen))


def _listed(sprites: Sequence[Sprite]) -> str:
    """ "a A, a B and a C" """
    words = [f"a {sprite.words}" for sprite in sprites]
    return " and ".join([", ".join(words[:-1]), words[-1]])


def judge_deltas(
    host: Host, judge: Judge, deltas: Mapping[str, Factors], sprites: Sequence[Sprite], asked: argparse.Namespace
) -> dict:
    """All judged figures of one model for all concepts."""
    with host.apply(deltas):
        per_concept = [identities(host, judge, sprite, asked.pictures, asked.backgrounds) for sprite in sprites]
        pairs = side_by_side(host, judge, sprites, 2, asked.pairs if len(sprites) > 1 else 0, asked.backgrounds)
        triples = side_by_side(host, judge, sprites, 3, asked.triples if len(sprites) > 2 else 0, asked.backgrounds)
    return summary(per_concept) | together(pairs, triples)


def summary(per_concept: Sequence[tuple[list[float], list[float]]]) -> dict:
    """Figures of pictures with one concept."""
    hits = [sum(right) / len(right) for right, _ in per_concept]
    every = [value for right, _ in per_concept for value in right]
    cosines = [value for _, cosine in per_concept for value in cosine]
    return {
        "identity": sum(every) / len(every),
        "interval": interval(sum(every), len(every)),
        "per_concept": hits,
        "cosine": sum(cosines) / len(cosines),
    }


def together(pairs: Together, triples: Together) -> dict:
    """Figures of pictures with two and three."""
    halves, thirds, told = pairs.parts_right(), triples.parts_right(), pairs.told()
    figures: dict = {"pairs": None, "triples": None}
    if halves:
        right = told["right"] * len(pairs.named)
        figures |= {
            "pairs": sum(halves) / len(halves),
            "pairs_interval": interval(sum(halves), len(halves)),
            "told": told,
            "right_interval": interval(right, len(pairs.named)),
        }
    if thirds:
        figures |= {"triples": sum(thirds) / len(thirds), "triples_interval": interval(sum(thirds), len(thirds))}
    return figures


def run_row(row: str, host: Host, judge: Judge, request: MergeRequest, sprites: Sequence[Sprite], arguments) -> dict:
    """One row of the table."""
    if row == "each LoRA alone":
        per_concept = []
        for lora, sprite in zip(load_inputs(request.concepts, host), sprites, strict=True):
            with host.apply(lora.deltas):
                per_concept.append(identities(host, judge, sprite, arguments.pictures, arguments.backgrounds))
        return summary(per_concept) | {"pairs": None, "triples": None}
    if row == "base model":
        return judge_deltas(host, judge, {}, sprites, arguments)
    method, options = ROWS[row]
    started = time.perf_counter()
    progress = ConsoleProgress()
    merge = merge_loras(replace(request, method=method, options=options), host, progress)
    progress.close()
    report = merge.report
    figures = {"seconds": time.perf_counter() - started, "rank": report.rank[1], "kept": report.kept}
    figures["retention"] = [concept.merged for concept in report.concepts]
    figures["recognised"] = [concept.recognised for concept in report.concepts]
    figures["base_drift"] = report.base_drift
    figures["refinement"] = {key: report.refinement.get(key) for key in ("steps", "reason")}
    return figures | judge_deltas(host, judge, merge.factors, sprites, arguments)


def table(results: Mapping[str, dict]) -> str:
    """The results in Markdown."""
    lines = [
        "| | identity (95 %) | weakest | two: halves right (95 %) | both right / swapped / one twice | three: thirds right "
        "| retention (weakest) | base drift | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, r in results.items():
        kept = [value for value in r.get("retention", []) if value is not None]
        told = r.get("told")
        cells = [
            row,
            _share(r["identity"], r["interval"], 3),
            f"{min(r['per_concept']):.2f}",
            "" if told is None else _share(r["pairs"], r["pairs_interval"]),
            "" if told is None else f"{told['right']:.2f} / {told['swapped']:.2f} / {told['twice']:.2f}",
            "" if r.get("triples") is None else _share(r["triples"], r["triples_interval"]),
            f"{sum(kept) / len(kept):.3f} ({min(kept):.3f})" if kept else "",
            f"{r['base_drift']:.2f}" if r.get("base_drift") is not None else "",
            f"{r['seconds']:.0f}" if "seconds" in r else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(share: float, bounds: Sequence[float], digits: int = 2) -> str:
    return f"{share:.{digits}f} ({bounds[0]:.2f}–{bounds[1]:.2f})"


def demo_request(
    names: Sequence[str], prompts: str, weights: Sequence[float] = ()
) -> tuple[MergeRequest, list[Sprite]]:
    """A request for some of the demo's LoRAs, and what the judge knows them by.

    Args:
        names: of the files
        prompts: "demo" for the templates of its request, "default" for those that a person gets who says nothing
        weights: of each, as in a prompt; 1 where there are none
    """
    entries = {Path(c["file"]).stem: c for c in json.loads((DEMO / "concepts.json").read_text("utf-8"))}
    sprites = [Sprite(entries[name]["name"], f"{entries[name]['trigger']} {entries[name]['class']}") for name in names]
    whole = MergeRequest.from_json((DEMO / "all-twelve.json").read_text("utf-8"))
    if prompts == "default":
        whole = replace(whole, prompts=MergeRequest(()).prompts)
    concepts = tuple(
        Concept(str(DEMO / "loras" / f"{name}.safetensors"), weight, weight, trigger=sprite.words)
        for name, sprite, weight in zip(names, sprites, weights or [1.0] * len(names), strict=True)
    )
    return replace(whole, concepts=concepts), sprites


def demo_names(concepts: int) -> list[str]:
    """The first of the demo's subjects."""
    entries = json.loads((DEMO / "concepts.json").read_text("utf-8"))
    return [Path(c["file"]).stem for c in entries if c["kind"] == "subject"][:concepts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=4, help="how many of the demo's twelve")
    parser.add_argument("--loras", nargs="*", default=[], metavar="NAME", help="which of them, by file name")
    parser.add_argument("--weights", nargs="*", type=float, default=[], help="of each, as in a prompt (default: 1)")
    parser.add_argument("--prompts", choices=("demo", "default"), default="default", help="templates that are recorded")
    parser.add_argument("--pictures", type=int, default=64, help="pictures per concept")
    parser.add_argument("--pairs", type=int, default=64, help="pictures with two concepts")
    parser.add_argument("--triples", type=int, default=64, help="pictures with three concepts")
    parser.add_argument(
        "--backgrounds", nargs="+", default=BACKGROUNDS, metavar="COLOUR", help="of the judged pictures, in turn"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the merge")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="rows of the table (default: all)")
    parser.add_argument("--results", type=Path, default=None, help="JSON file to keep rows in")
    arguments = parser.parse_args()
    names = arguments.loras or demo_names(arguments.concepts)
    request, sprites = demo_request(names, arguments.prompts, arguments.weights)
    request = replace(request, seed=arguments.seed)
    host, judge = load(DEMO / "emoji-sd1.safetensors"), Judge()
    kept = arguments.results is not None and arguments.results.is_file()
    results = json.loads(arguments.results.read_text("utf-8")) if kept else {}
    for row in arguments.rows:
        if row not in results:
            results[row] = run_row(row, host, judge, request, sprites, arguments)
            if arguments.results:
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                arguments.results.write_text(json.dumps(results, indent=1), "utf-8")
        print(table({row: results[row]}).splitlines()[-1], flush=True)
    print(
        f"\n{', '.join(names)}; {arguments.pictures} pictures a concept, {arguments.pairs} with two, "
        f"{arguments.triples} with three, {arguments.prompts} prompts\n\n{table(results)}"
    )


if __name__ == "__main__":
    main()
