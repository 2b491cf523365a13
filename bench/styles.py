"""Styles on subjects, judged: is the style seen, and is the subject still who it is?

    python -m bench.styles --subjects fox-face penguin --styles style-mono --efforts fast balanced

A picture shows the style where the judge's embedding of it is nearer to the mean of pictures that subject and style make
together, each from its own LoRA, than to the mean of those of the subject alone, in the same words and on other seeds. The row
"both LoRAs" is what the merge is to keep, "the subject alone" the control.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.judge import DEMO, Judge, to_tensor
from bench.quality import BACKGROUNDS, GUIDANCE, SEED, STEPS, interval
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras
from lib_loraclr.model import Deltas, Host, together
from lib_loraclr.recording import load_inputs, sample
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions


@dataclass(frozen=True)
class Drawn:
    """Pictures of one subject.

    Attributes:
        right: whether the judge takes each for the subject
        embeddings: the judge's, `[n, 192]`
    """

    right: list[float]
    embeddings: Tensor


@torch.no_grad()
def draw(host: Host, judge: Judge, deltas: Deltas, name: str, words: str, style: str, seeds: range) -> Drawn:
    """Pictures of a subject, with a style's words after the prompt where it has some."""
    after = f", {style}" if style else ""
    prompts = [
        f"a photo of a {words} on a {BACKGROUNDS[k % len(BACKGROUNDS)]} background{after}" for k in range(len(seeds))
    ]
    with host.apply(deltas):
        latents = sample(host, prompts, seeds, size=(128, 128), steps=STEPS, guidance=GUIDANCE)
    pictures = host.decode(latents)
    right, _ = judge.identity(pictures, name)
    return Drawn(right.tolist(), judge.embed(to_tensor(pictures)))


def shown(pictures: Tensor, styled: Tensor, plain: Tensor) -> list[float]:
    """Per picture whether its embedding is nearer to the mean of the styled ones than to that of the plain ones.

    Args:
        pictures, styled, plain: embeddings, `[n, d]` each
    """
    means = [torch.nn.functional.normalize(own.mean(0), dim=0) for own in (styled, plain)]
    return (pictures @ means[0] > pictures @ means[1]).float().tolist()


def _share(values: Sequence[float]) -> str:
    lower, upper = interval(sum(values), len(values))
    return f"{sum(values) / len(values):.2f} ({lower:.2f}–{upper:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", default=["fox-face", "penguin"], metavar="NAME")
    parser.add_argument(
        "--styles", nargs="+", default=["style-mono", "style-clay"], metavar="NAME", help="one merge each"
    )
    parser.add_argument("--efforts", nargs="*", default=["fast", "balanced"])
    parser.add_argument("--pictures", type=int, default=32, help="per subject")
    arguments = parser.parse_args()
    host, judge = load(DEMO / "emoji-sd1.safetensors"), Judge()
    entries = {Path(c["file"]).stem: c for c in json.loads((DEMO / "concepts.json").read_text("utf-8"))}
    print("| | style shown (95 %) | identity (95 %) | seconds |\n|---|---|---|---|")
    for style in arguments.styles:
        for line in _rows(host, judge, entries, arguments, style):
            print(line, flush=True)


def _rows(host: Host, judge: Judge, entries: dict, arguments: argparse.Namespace, style: str) -> Iterator[str]:
    names, count = arguments.subjects, arguments.pictures
    words = {name: f"{entries[name]['trigger']} {entries[name]['class']}" for name in names}
    called = entries[style]["trigger"] or ""
    concepts = tuple(
        Concept(str(DEMO / "loras" / f"{name}.safetensors"), trigger=words.get(name, called), kind=kind)
        for name, kind in (*((name, "subject") for name in names), (style, "style"))
    )
    inputs = load_inputs(concepts, host)
    judged, others = range(SEED, SEED + count), range(SEED + 1000, SEED + 1000 + count)
    references = {}
    for k, name in enumerate(names):
        both, alone = together([inputs[k].deltas, inputs[-1].deltas]), inputs[k].deltas
        references[name] = [
            draw(host, judge, deltas, entries[name]["name"], words[name], own, others).embeddings
            for deltas, own in ((both, called), (alone, ""))
        ]

    def row(label: str, models: Sequence[Deltas], told: str, seconds: str = "") -> str:
        seen, right = [], []
        for deltas, name in zip(models, names, strict=True):
            drawn = draw(host, judge, deltas, entries[name]["name"], words[name], told, judged)
            seen += shown(drawn.embeddings, *references[name])
            right += drawn.right
        cells = [
            f"{sum(v) / len(v):.2f} ({interval(sum(v), len(v))[0]:.2f}–{interval(sum(v), len(v))[1]:.2f})"
            for v in (seen, right)
        ]
        return f"| {style}: {label} | {' | '.join(cells)} | {seconds} |"

    yield row("both LoRAs", [together([given.deltas, inputs[-1].deltas]) for given in inputs[:-1]], called)
    yield row("the subject alone", [given.deltas for given in inputs[:-1]], "")
    for effort in arguments.efforts:
        request = MergeRequest(concepts, options={"effort": effort}, recording=RecordingOptions(guidance=GUIDANCE))
        begun = time.perf_counter()
        merge = merge_loras(request, host)
        taken = f"{time.perf_counter() - begun:.0f}"
        yield row(f"LoRACLR {effort}", [merge.factors] * len(names), called, taken)
        if called:
            yield row(f"LoRACLR {effort}, style not called", [merge.factors] * len(names), "")


if __name__ == "__main__":
    main()
