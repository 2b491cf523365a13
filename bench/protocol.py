"""What is drawn, and what the judge says of it: the protocol of demo/README.md, in figures that can be added up.

Every share is kept as `[successes, count]`. Of a picture with two concepts it is told whether both are right, swapped, one is
there twice, or anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.judge import Judge, to_tensor
from bench.world import Sprite
from lib_loraclr.model import Host
from lib_loraclr.recording import sample

BACKGROUNDS = ("white", "green", "yellow", "purple")
#: the demo world's, as its checkpoint was trained to draw them
COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (200, 60, 60),
    "green": (70, 160, 80),
    "blue": (70, 100, 200),
    "yellow": (240, 220, 110),
    "pink": (245, 180, 200),
    "gray": (140, 140, 140),
    "purple": (140, 80, 170),
    "orange": (240, 150, 60),
}
#: what neither templates nor bank say
UNSEEN = ("a {} wearing a hat, in the snow", "my {} at the beach, watercolor", "the {} riding a bike", "{}, night sky")
STEPS, GUIDANCE, SEED = 16, 4.0, 10_000
SIDE = 128


@dataclass(frozen=True)
class Sizes:
    """How many pictures are judged.

    Attributes:
        one: of each concept
        unseen: of each concept, in words that were never recorded
        two, regions: with two concepts, by one prompt and by one for each half
        three: with three
    """

    one: int = 8
    unseen: int = 2
    two: int = 12
    regions: int = 4
    three: int = 4

    def asked(self) -> dict[str, int]:
        return asdict(self)


class Drawer(Protocol):
    """Draws up to eight pictures at once."""

    def __call__(
        self, prompts: Sequence[str], named: Sequence[Sequence[Sprite]], seeds: Sequence[int], size: tuple[int, int]
    ) -> Tensor:
        """Clean latents `[b, c, h, w]`.

        Args:
            prompts, seeds: of each picture
            named: the concepts of each picture's prompt, left to right
            size: height and width in pixels
        """
        ...


def drawing(host: Host) -> Drawer:
    """By the model as it is then."""

    def draw(
        prompts: Sequence[str], named: Sequence[Sequence[Sprite]], seeds: Sequence[int], size: tuple[int, int]
    ) -> Tensor:
        return sample(host, prompts, seeds, size=size, steps=STEPS, guidance=GUIDANCE)

    return draw


class Jury:
    """Draws pictures of a model and has them judged, always in the same words and on the same seeds."""

    def __init__(
        self,
        host: Host,
        judge: Judge,
        sprites: Sequence[Sprite],
        sizes: Sizes,
        *,
        backgrounds: Sequence[str] = BACKGROUNDS,
        seed: int = 0,
        draw: Drawer | None = None,
    ) -> None:
        """
        Args:
            seed: of the run; other seeds draw other pictures
            draw: how pictures are made; None: by the model as it is then
        """
        self._draw = draw or drawing(host)
        self._host, self._judge, self.sprites, self._sizes = host, judge, sprites, sizes
        self._backgrounds, self._first = backgrounds, SEED + 1000 * seed

    def one(self, sprite: Sprite) -> tuple[dict, Tensor]:
        """Pictures of one concept: figures, and the judge's embeddings `[n, 192]`."""
        count = self._sizes.one
        prompts = [f"a photo of a {sprite.words} on a {self._background(k)} background" for k in range(count)]
        pictures = self._drawn(prompts, [(sprite,)] * count)
        right, cosine = self._judge.identity(pictures, sprite.name)
        grounds = [ground_colour(picture) == self._background(k) for k, picture in enumerate(pictures)]
        figures = {
            "identity": [int(right.sum()), count],
            "cosine": float(cosine.mean()) if count else None,
            "background": [sum(grounds), count],
        }
        return figures, self._judge.embed(to_tensor(pictures))

    def unseen(self, sprite: Sprite) -> list[int]:
        """Pictures of one concept in words that were never recorded: how many are recognised, of how many."""
        prompts = [UNSEEN[k % len(UNSEEN)].format(sprite.words) for k in range(self._sizes.unseen)]
        right, _ = self._judge.identity(self._drawn(prompts, [(sprite,)] * len(prompts)), sprite.name)
        return [int(right.sum()), len(prompts)]

    def together(self, width: int) -> dict[str, list]:
        """Pictures of two or three concepts side by side, asked for in one prompt; every order in turn."""
        chosen = self._orders(width, self._sizes.two if width == 2 else self._sizes.three)
        prompts = [f"{listed(row)} on a {self._background(k)} background" for k, row in enumerate(chosen)]
        return told(chosen, [self._parts(picture, width) for picture in self._drawn(prompts, chosen)])

    def regions(self) -> dict[str, list]:
        """Two concepts, each half of the picture with a prompt of its own: the collage that teaches scenes, by one model."""
        chosen = self._orders(2, self._sizes.regions)
        prompts = [
            f"a {sprite.words} on a {self._background(k)} background" for k, row in enumerate(chosen) for sprite in row
        ]
        alone = [(sprite,) for row in chosen for sprite in row]
        seen = self._judge.nearest(self._drawn(prompts, alone)) if prompts else []
        return told(chosen, [tuple(seen[2 * k : 2 * k + 2]) for k in range(len(chosen))])

    def _orders(self, width: int, count: int) -> list[tuple[Sprite, ...]]:
        if len(self.sprites) < width or not count:
            return []
        orders = list(permutations(self.sprites, width))
        return [orders[k * len(orders) // count if count < len(orders) else k % len(orders)] for k in range(count)]

    def _background(self, k: int) -> str:
        return self._backgrounds[k % len(self._backgrounds)]

    def _drawn(self, prompts: Sequence[str], named: Sequence[Sequence[Sprite]]) -> list[Image.Image]:
        """One picture for each prompt, as wide as it names concepts; all name as many."""
        pictures = []
        for start in range(0, len(prompts), 8):
            asked, rows = prompts[start : start + 8], named[start : start + 8]
            seeds = range(self._first + start, self._first + start + len(asked))
            pictures += self._host.decode(self._draw(asked, rows, seeds, (SIDE, SIDE * len(rows[0]))))
        return pictures

    def _parts(self, picture: Image.Image, width: int) -> tuple[str, ...]:
        return tuple(self._judge.nearest([picture.crop((SIDE * k, 0, SIDE * (k + 1), SIDE)) for k in range(width)]))


#: what becomes of a picture with several concepts, as `kind` tells it
KINDS = ("right", "swapped", "twice", "neither")
#: what `told` counts, as successes of how many
SHARES = ("parts", *KINDS)


def told(named: Sequence[Sequence[Sprite]], seen: Sequence[Sequence[str]]) -> dict[str, list]:
    """Of pictures with several concepts: how many parts are right, what became of each picture, and for each part (a row, left
    to right) how often it is the concept named first, second, …, and none of them.

    Args:
        named: per picture, the concepts of its prompt, left to right
        seen: per picture, what the judge takes its parts for
    """
    pairs = [(tuple(sprite.name for sprite in row), tuple(parts)) for row, parts in zip(named, seen, strict=True)]
    parts = [a == b for names, found in pairs for a, b in zip(names, found, strict=True)]
    kinds = [kind(names, found) for names, found in pairs]
    shares = {name: [kinds.count(name), len(kinds)] for name in KINDS}
    width = max(map(len, named), default=0)
    places = [
        Counter(names.index(found[k]) if found[k] in names else width for names, found in pairs) for k in range(width)
    ]
    who = [[counts[place] for place in range(width + 1)] for counts in places]
    return {"parts": [sum(parts), len(parts)], **shares, "who": who}


def kind(named: tuple[str, ...], seen: tuple[str, ...]) -> str:
    """`right`: all where they belong; `swapped`: all there, elsewhere; `twice`: one more than once; else `neither`."""
    if seen == named:
        return "right"
    if sorted(seen) == sorted(named):
        return "swapped"
    return "twice" if any(seen.count(name) > 1 for name in named) else "neither"


def listed(sprites: Sequence[Sprite]) -> str:
    """ "a A, a B and a C" """
    words = [f"a {sprite.words}" for sprite in sprites]
    return " and ".join([", ".join(words[:-1]), words[-1]])


def ground_colour(picture: Image.Image) -> str:
    """The colour of a picture's border, by the nearest of the world's ten names: whether the prompt's background was drawn."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    border = np.concatenate([pixels[:8].reshape(-1, 3), pixels[8:, :8].reshape(-1, 3), pixels[8:, -8:].reshape(-1, 3)])
    colour = np.median(border, axis=0)
    return min(COLOURS, key=lambda name: float(np.square(colour - np.array(COLOURS[name])).sum()))


@torch.no_grad()
def judged(jury: Jury, references: Sequence[Tensor] | None) -> dict:
    """All judged figures of the model as it is now.

    Args:
        references: per concept, embeddings of what its own LoRA draws in the same words and on the same seeds, `[n, 192]`
    """
    singles = [jury.one(sprite) for sprite in jury.sprites]
    figures = single_figures([own for own, _ in singles], [jury.unseen(sprite) for sprite in jury.sprites])
    if references:
        pairs = zip(singles, references, strict=True)
        cosines = torch.cat([(own * ref).sum(1) for (_, own), ref in pairs])
        figures |= {"alignment": float(cosines.mean())} if len(cosines) else {}
    return figures | {"two": jury.together(2), "regions": jury.regions(), "three": jury.together(3)}


def single_figures(singles: Sequence[dict], unseen: Sequence[Sequence[int]]) -> dict:
    """Figures of pictures with one concept, all concepts together; `weakest` is the share of the one recognised least, and `each`
    what was recognised of each, in their order."""
    known = [own["cosine"] for own in singles if own["cosine"] is not None]
    return {
        "identity": added(own["identity"] for own in singles),
        "each": [own["identity"] for own in singles],
        "weakest": min(
            (own["identity"][0] / own["identity"][1] for own in singles if own["identity"][1]), default=None
        ),
        "cosine": sum(known) / len(known) if known else None,
        "background": added(own["background"] for own in singles),
        "unseen": added(unseen),
    }


def added(counts) -> list[int]:
    """`[successes, count]` of all of them."""
    counts = list(counts)
    return [sum(pair[k] for pair in counts) for k in range(2)]
