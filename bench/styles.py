"""Styles on subjects, judged: is the style seen, and is the subject still who it is?

    python dev.py bench styles --subjects fox-face penguin --styles style-mono --efforts fast balanced

A picture shows the style where the judge's embedding of it is nearer to the mean of pictures that subject and style make
together, each from its own LoRA, than to the mean of those of the subject alone, in the same words and on other seeds. The row
"both LoRAs" is what the merge is to keep, "the subject alone" the control.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cells import Cells
from bench.clock import Clock
from bench.judge import DEMO, Judge, to_tensor
from bench.protocol import BACKGROUNDS, GUIDANCE, SEED, SIDE, STEPS
from bench.tables import markdown, share
from bench.world import demo_entries, demo_host
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
        latents = sample(host, prompts, seeds, size=(SIDE, SIDE), steps=STEPS, guidance=GUIDANCE)
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


class Bench:
    """One style on the subjects: the LoRAs, and what their pictures look like with and without it."""

    def __init__(self, host: Host, judge: Judge, arguments: argparse.Namespace, style: str) -> None:
        self._host, self._judge, self._names, self._count = host, judge, arguments.subjects, arguments.pictures
        self._entries = entries = demo_entries()
        self._words = {name: f"{entries[name]['trigger']} {entries[name]['class']}" for name in self._names}
        self.called = entries[style]["trigger"] or ""
        self._concepts = tuple(
            Concept(str(DEMO / "loras" / f"{name}.safetensors"), trigger=self._words.get(name, self.called), kind=kind)
            for name, kind in (*((name, "subject") for name in self._names), (style, "style"))
        )
        *subjects, styling = load_inputs(self._concepts, host)
        self._alone = [given.deltas for given in subjects]
        self._both = [together([given.deltas, styling.deltas]) for given in subjects]
        self._references: list[tuple[Tensor, Tensor]] = []

    def loras(self) -> dict:
        """The row that a merge is to keep."""
        return self._told(self._both, self.called)

    def alone(self) -> dict:
        """The control: the subjects without the style."""
        return self._told(self._alone, "")

    def merged(self, effort: str) -> dict:
        """A merge at that effort, with the style called, and not called where it has trigger words."""
        recording = RecordingOptions(guidance=GUIDANCE)
        clock = Clock()
        merge = merge_loras(
            MergeRequest(self._concepts, options={"effort": effort}, recording=recording), self._host, clock
        )
        clock.finish()
        models = [merge.factors] * len(self._names)
        found = self._told(models, self.called) | {"seconds": clock.total().processor}
        return found | ({"not called": self._told(models, "")} if self.called else {})

    def _told(self, models: Sequence[Deltas], style: str) -> dict:
        seen, right = [], []
        for model, name, references in zip(models, self._names, self._known(), strict=True):
            drawn = self._draw(model, name, style, SEED)
            seen += shown(drawn.embeddings, *references)
            right += drawn.right
        return {"style": [int(sum(seen)), len(seen)], "identity": [int(sum(right)), len(right)]}

    def _known(self) -> list[tuple[Tensor, Tensor]]:
        """Per subject, embeddings of pictures with the style and without it, on seeds that are not judged."""
        if not self._references:
            for name, both, alone in zip(self._names, self._both, self._alone, strict=True):
                first = self._draw(both, name, self.called, SEED + 1000).embeddings
                self._references.append((first, self._draw(alone, name, "", SEED + 1000).embeddings))
        return self._references

    def _draw(self, deltas: Deltas, name: str, style: str, first: int) -> Drawn:
        seeds = range(first, first + self._count)
        return draw(self._host, self._judge, deltas, self._entries[name]["name"], self._words[name], style, seeds)


def publish(cells: Cells) -> None:
    rows = []
    for path in cells:
        found = cells.known(path)
        seconds = f"{found['seconds']:.0f}" if "seconds" in found else ""
        rows.append([path.replace("/", ": "), share([found["style"]]), share([found["identity"]]), seconds])
        if "not called" in found:
            own = found["not called"]
            rows.append(
                [f"{path.replace('/', ': ')}, style not called", share([own["style"]]), share([own["identity"]]), ""]
            )
    title = f"# Styles\n\n{__doc__.splitlines()[0]} By `python dev.py bench styles`; 95 % intervals.\n\n"
    cells.publish(title + markdown(("", "style shown", "identity", "seconds"), rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subjects", nargs="+", default=["fox-face", "penguin"], metavar="NAME")
    parser.add_argument(
        "--styles", nargs="+", default=["style-mono", "style-clay"], metavar="NAME", help="one merge each"
    )
    parser.add_argument("--efforts", nargs="*", default=["fast", "balanced"])
    parser.add_argument("--pictures", type=int, default=32, help="per subject")


def main(arguments: argparse.Namespace) -> None:
    cells, host, judge = Cells("styles", arguments.results), demo_host(), Judge()
    asked = {"subjects": arguments.subjects, "pictures": arguments.pictures}
    for style in arguments.styles:
        bench = Bench(host, judge, arguments, style)
        cells.measured(f"{style}/both LoRAs", asked, bench.loras)
        cells.measured(f"{style}/the subject alone", asked, bench.alone)
        for effort in arguments.efforts:
            cells.measured(f"{style}/LoRACLR {effort}", asked, lambda effort=effort, bench=bench: bench.merged(effort))
        publish(cells)
