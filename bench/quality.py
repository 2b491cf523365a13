"""Quality on the demo world, judged by a classifier that the product never sees: the table in the README.

    python -m bench.quality --concepts 4 --pictures 64 --results bench/results/quality-4.json

Rows that the results file already has are not run again. Protocol: demo/README.md, "Judge".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from bench.judge import DEMO, Judge
from lib_loraclr.doors.cli.console import ConsoleProgress
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras
from lib_loraclr.model import Factors, Host
from lib_loraclr.recording import load_inputs, sample
from lib_loraclr.request import MergeRequest

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
def identities(host: Host, judge: Judge, sprite: Sprite, count: int) -> tuple[list[float], list[float]]:
    """Per picture: whether the judge takes it for the sprite, and the cosine."""
    prompts = [f"a photo of a {sprite.words} on a {BACKGROUNDS[k % 4]} background" for k in range(count)]
    seeds = range(SEED, SEED + count)
    latents = sample(host, prompts, seeds, size=(128, 128), steps=STEPS, guidance=GUIDANCE)
    right, cosine = judge.identity(host.decode(latents), sprite.name)
    return right.tolist(), cosine.tolist()


@torch.no_grad()
def pairs_right(host: Host, judge: Judge, sprites: Sequence[Sprite], count: int) -> list[float]:
    """Per half of `count` pictures with two concepts: whether the judge takes it for the concept named there."""
    pairs = list(combinations(sprites, 2))
    chosen = [
        pairs[k * len(pairs) // count % len(pairs)] if count < len(pairs) else pairs[k % len(pairs)]
        for k in range(count)
    ]
    prompts = [f"a {a.words} and a {b.words} on a {BACKGROUNDS[k % 4]} background" for k, (a, b) in enumerate(chosen)]
    latents = sample(host, prompts, range(SEED, SEED + count), size=(128, 256), steps=STEPS, guidance=GUIDANCE)
    right = []
    for picture, pair in zip(host.decode(latents), chosen, strict=True):
        for left, sprite in zip((0, 128), pair, strict=True):
            right += judge.identity([picture.crop((left, 0, left + 128, 128))], sprite.name)[0].tolist()
    return right


def judge_deltas(
    host: Host, judge: Judge, deltas: Mapping[str, Factors], sprites: Sequence[Sprite], pictures: int, pairs: int
) -> dict:
    """All judged figures of one model for all concepts."""
    with host.apply(deltas):
        per_concept = [identities(host, judge, sprite, pictures) for sprite in sprites]
        double = pairs_right(host, judge, sprites, pairs)
    return summary(per_concept, double)


def summary(per_concept: Sequence[tuple[list[float], list[float]]], double: Sequence[float]) -> dict:
    hits = [sum(right) / len(right) for right, _ in per_concept]
    every = [value for right, _ in per_concept for value in right]
    cosines = [value for _, cosine in per_concept for value in cosine]
    return {
        "identity": sum(every) / len(every),
        "interval": interval(sum(every), len(every)),
        "per_concept": hits,
        "cosine": sum(cosines) / len(cosines),
        "pairs": sum(double) / len(double) if double else None,
        "pairs_interval": interval(sum(double), len(double)) if double else None,
    }


def run_row(row: str, host: Host, judge: Judge, request: MergeRequest, sprites: Sequence[Sprite], arguments) -> dict:
    """One row of the table."""
    if row == "each LoRA alone":
        per_concept = []
        for given, sprite in zip(load_inputs(request.concepts, host), sprites, strict=True):
            with host.apply(given.deltas):
                per_concept.append(identities(host, judge, sprite, arguments.pictures))
        return summary(per_concept, [])
    if row == "base model":
        return judge_deltas(host, judge, {}, sprites, arguments.pictures, arguments.pairs)
    method, options = ROWS[row]
    started = time.perf_counter()
    progress = ConsoleProgress()
    merge = merge_loras(replace(request, method=method, options=options), host, progress)
    progress.close()
    figures = {"seconds": time.perf_counter() - started, "rank": merge.report.rank[1]}
    figures["retention"] = [concept.merged for concept in merge.report.concepts]
    figures["base_drift"] = merge.report.base_drift
    figures["refinement"] = {key: merge.report.refinement.get(key) for key in ("steps", "reason")}
    return figures | judge_deltas(host, judge, merge.factors, sprites, arguments.pictures, arguments.pairs)


def table(results: Mapping[str, dict]) -> str:
    """The results in Markdown."""
    lines = [
        "| | identity (95 %) | weakest | cosine | two concepts (95 %) | retention (weakest) | base drift | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, r in results.items():
        low, high = r["interval"]
        kept = [value for value in r.get("retention", []) if value is not None]
        both = (
            ""
            if r["pairs"] is None
            else f"{r['pairs']:.2f} ({r['pairs_interval'][0]:.2f}–{r['pairs_interval'][1]:.2f})"
        )
        lines.append(
            f"| {row} | {r['identity']:.3f} ({low:.2f}–{high:.2f}) | {min(r['per_concept']):.2f} | {r['cosine']:.3f} | {both} "
            + (f"| {sum(kept) / len(kept):.3f} ({min(kept):.3f}) " if kept else "| ")
            + (f"| {r['base_drift']:.2f} " if r.get("base_drift") is not None else "| ")
            + (f"| {r['seconds']:.0f} |" if "seconds" in r else "| |")
        )
    return "\n".join(lines)


def demo_request(concepts: int) -> tuple[MergeRequest, list[Sprite]]:
    """The demo's request for its first concepts, and what the judge knows them by."""
    entries = [c for c in json.loads((DEMO / "concepts.json").read_text("utf-8")) if c["kind"] == "subject"]
    sprites = [Sprite(c["name"], f"{c['trigger']} {c['class']}") for c in entries[:concepts]]
    request = MergeRequest.from_json((DEMO / "all-twelve.json").read_text("utf-8"))
    loras = tuple(replace(c, lora=str(DEMO / c.lora)) for c in request.concepts[:concepts])
    return replace(request, concepts=loras), sprites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=4, help="how many of the demo's twelve")
    parser.add_argument("--pictures", type=int, default=64, help="pictures per concept")
    parser.add_argument("--pairs", type=int, default=48, help="pictures with two concepts")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="rows of the table (default: all)")
    parser.add_argument("--results", type=Path, default=None, help="JSON file to keep rows in")
    arguments = parser.parse_args()
    request, sprites = demo_request(arguments.concepts)
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
        f"\nN = {arguments.concepts}, {arguments.pictures} pictures a concept, {arguments.pairs} with two\n\n{table(results)}"
    )


if __name__ == "__main__":
    main()
