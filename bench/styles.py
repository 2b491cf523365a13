"""Styles on subjects, judged: is the style seen, and is the subject still who it is?

    python dev.py bench styles --subjects fox-face penguin --styles style-mono --efforts fast balanced

A picture shows the style where the judge's embedding of it is nearest to the mean of pictures that subject and style make
together, each from its own LoRA, and not to that of the subject alone, in the same words and on other seeds. Both are drawn as
the tags draw them, and with neither LoRA in what guidance subtracts, as a merge draws: pictures are clearer then, and a clear
one would be taken for a styled one.

The row "both LoRAs" is what the tags draw, "the subject alone" the control, and "as it is taught" what a merge comes to that
learns all it is told.

The judge knows its prototypes by their colours too, which a style may take away. So identity is told twice: by the prototypes,
of 48, and *within the style*, by whose look a picture is nearest to: the demo's subjects, as their own LoRAs and the style's draw
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cells import Cells
from bench.clock import Clock
from bench.judge import DEMO, Judge, to_tensor
from bench.protocol import BACKGROUNDS, GUIDANCE, SEED, SIDE, STEPS
from bench.tables import markdown, share
from bench.world import demo_entries, demo_host, demo_names, sprite_of
from lib_loraclr.merge import merge_loras
from lib_loraclr.model import Conditioning, Deltas, Host, together
from lib_loraclr.recording import BATCH, IN_NEGATIVE, load_inputs
from lib_loraclr.recording.sampling import denoising_path, initial_noise
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

#: pictures of each subject, with the style and without, drawn in each of both ways, that others are held against
REFERENCES = 8


@dataclass(frozen=True)
class Drawn:
    """Pictures of one subject.

    Attributes:
        right: whether the judge takes each for the subject
        embeddings: the judge's, `[n, 192]`
    """

    right: list[float]
    embeddings: Tensor


#: deltas with which the model is asked for the prompts, and for the negative ones
Model = tuple[Deltas, Deltas]


@torch.no_grad()
def draw(host: Host, judge: Judge, model: Model, name: str, words: str, style: str, seeds: range) -> Drawn:
    """Pictures of a subject, with a style's words after the prompt where it has some."""
    after = f", {style}" if style else ""
    prompts = [
        f"a photo of a {words} on a {BACKGROUNDS[k % len(BACKGROUNDS)]} background{after}" for k in range(len(seeds))
    ]
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        noise = initial_noise(host, seeds[part], SIDE, SIDE)
        asked = (prompts[part], [""] * len(noise))
        called, subtracted = (_encoded(host, *own) for own in zip(model, asked, strict=True))
        path = denoising_path(host, noise, called, subtracted, steps=STEPS, guidance=GUIDANCE, apart=model)
        *_, latents = path
        pictures += host.decode(latents)
    right, _ = judge.identity(pictures, name)
    return Drawn(right.tolist(), judge.embed(to_tensor(pictures)))


def _encoded(host: Host, deltas: Deltas, prompts: Sequence[str]) -> Conditioning:
    with host.apply(deltas):
        return host.encode(prompts)


def shown(pictures: Tensor, styled: Sequence[Tensor], plain: Sequence[Tensor]) -> list[float]:
    """Per picture whether its embedding is nearest to the mean of some styled ones, and not of plain ones.

    Args:
        pictures: embeddings, `[n, d]`
        styled, plain: embeddings of each way to draw, `[m, d]`
    """
    return [float(look == "styled") for look in nearest(pictures, {"styled": styled, "plain": plain})]


def nearest(pictures: Tensor, looks: Mapping[str, Sequence[Tensor]]) -> list[str]:
    """Per picture, whose look has the nearest mean.

    Args:
        pictures: embeddings, `[n, d]`
        looks: embeddings of each one's pictures, in each way to draw, `[m, d]`
    """
    names = [name for name in sorted(looks) for _ in looks[name]]
    ways = [way for name in sorted(looks) for way in looks[name]]
    means = torch.stack([torch.nn.functional.normalize(way.mean(0), dim=0) for way in ways])
    return [names[place] for place in (pictures @ means.mT).argmax(1).tolist()]


class Bench:
    """One style on the subjects: the LoRAs, and what their pictures look like with and without it."""

    def __init__(self, host: Host, judge: Judge, arguments: argparse.Namespace, style: str) -> None:
        self._host, self._judge, self._names, self._count = host, judge, arguments.subjects, arguments.pictures
        entries = demo_entries()
        self.called = entries[style]["trigger"] or ""
        # those that are not merged too: whom a picture could be taken for
        known = [*self._names, *(name for name in demo_names(len(entries)) if name not in self._names)]
        self._sprites = {name: sprite_of(entries[name]) for name in known}
        words = {name: sprite.words for name, sprite in self._sprites.items()} | {style: self.called}
        concepts = {
            name: Concept(str(DEMO / "loras" / f"{name}.safetensors"), trigger=words[name], kind=entries[name]["kind"])
            for name in (*known, style)
        }
        self._concepts = tuple(concepts[name] for name in (*self._names, style))
        *subjects, styling = load_inputs(tuple(concepts.values()), host)
        self._alone = {name: given.deltas for name, given in zip(known, subjects, strict=True)}
        self._both = {name: together([given, styling.deltas]) for name, given in self._alone.items()}
        half = {key: factors.scaled(IN_NEGATIVE) for key, factors in styling.deltas.items()}
        self._subtracted: Deltas = {} if self.called else half
        self._looks: dict[str, list[Tensor]] = {}
        self._plain: dict[str, list[Tensor]] = {}

    def loras(self) -> dict:
        """What the tags draw."""
        return self._told({name: (both, both) for name, both in self._both.items()}, self.called)

    def alone(self) -> dict:
        """The control: the subjects without the style."""
        return self._told({name: (alone, alone) for name, alone in self._alone.items()}, "")

    def taught(self) -> dict:
        """What a merge comes to that learns all it is told."""
        return self._told({name: (both, self._subtracted) for name, both in self._both.items()}, self.called)

    def merged(self, effort: str) -> dict:
        """A merge at that effort, with the style called, and not called where it has trigger words."""
        recording = RecordingOptions(guidance=GUIDANCE)
        clock = Clock()
        merge = merge_loras(
            MergeRequest(self._concepts, options={"effort": effort}, recording=recording), self._host, clock
        )
        clock.finish()
        models: dict[str, Model] = dict.fromkeys(self._names, (merge.factors, merge.factors))
        found = self._told(models, self.called) | {"seconds": clock.total().processor}
        return found | ({"not called": self._told(models, "")} if self.called else {})

    def _told(self, models: Mapping[str, Model], style: str) -> dict:
        self._draw_references()
        seen, right, within = [], [], []
        for name in self._names:
            drawn = self._draw(models[name], name, style, range(SEED, SEED + self._count))
            seen += shown(drawn.embeddings, self._looks[name], self._plain[name])
            right += drawn.right
            within += [one == name for one in nearest(drawn.embeddings, self._looks)]
        shares = {"style": seen, "identity": right, "identity within the style": within}
        return {what: [int(sum(own)), len(own)] for what, own in shares.items()}

    def _draw_references(self) -> None:
        """What all look like with the style, and those that are merged without it, on seeds that are not judged."""
        seeds = range(SEED + 1000, SEED + 1000 + REFERENCES)

        def drawn(deltas: Deltas, name: str, style: str) -> list[Tensor]:
            return [self._draw((deltas, negative), name, style, seeds).embeddings for negative in (deltas, {})]

        for name in self._sprites if not self._looks else ():
            self._looks[name] = drawn(self._both[name], name, self.called)
        for name in self._names if not self._plain else ():
            self._plain[name] = drawn(self._alone[name], name, "")

    def _draw(self, model: Model, name: str, style: str, seeds: range) -> Drawn:
        sprite = self._sprites[name]
        return draw(self._host, self._judge, model, sprite.name, sprite.words, style, seeds)


#: what a cell tells of pictures, in the order of the columns
COLUMNS = ("style", "identity", "identity within the style")


def publish(cells: Cells) -> None:
    rows = []
    for path in cells:
        found, name = cells.known(path), path.replace("/", ": ")
        seconds = f"{found['seconds']:.0f}" if "seconds" in found else ""
        rows.append([name, *(share([found[column]]) for column in COLUMNS), seconds])
        if "not called" in found:
            own = found["not called"]
            rows.append([f"{name}, style not called", *(share([own[column]]) for column in COLUMNS), ""])
    title = f"# Styles\n\n{__doc__.splitlines()[0]} By `python dev.py bench styles`; 95 % intervals.\n\n"
    cells.publish(title + markdown(("", "style shown", *COLUMNS[1:], "seconds"), rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subjects", nargs="+", default=["fox-face", "penguin"], metavar="NAME")
    parser.add_argument(
        "--styles", nargs="+", default=["style-mono", "style-clay"], metavar="NAME", help="one merge each"
    )
    parser.add_argument("--efforts", nargs="*", default=["fast", "balanced"])
    parser.add_argument("--pictures", type=int, default=32, help="per subject")


def main(arguments: argparse.Namespace) -> None:
    cells, host, judge = Cells("styles", arguments.results), demo_host(), Judge()
    asked = {"subjects": arguments.subjects, "pictures": arguments.pictures, "references": REFERENCES}
    for style in arguments.styles:
        bench = Bench(host, judge, arguments, style)
        cells.measured(f"{style}/both LoRAs", asked, bench.loras)
        cells.measured(f"{style}/the subject alone", asked, bench.alone)
        cells.measured(f"{style}/as it is taught", asked, bench.taught)
        for effort in arguments.efforts:
            cells.measured(f"{style}/LoRACLR {effort}", asked, lambda effort=effort, bench=bench: bench.merged(effort))
        publish(cells)
