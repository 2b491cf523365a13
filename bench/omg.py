"""OMG (Kong et al., arXiv 2403.10983): a layout by the base model, then each LoRA's noise in its own region.

No merged model but a way to draw, which needs every LoRA by itself, and many more predictions. The prompt with class words in
place of the concepts' draws a layout. The second picture begins on the same noise with the same predictions; from then on each
concept's region is predicted by its own LoRA with its own prompt, that and the negative one. So the authors' code does it
(github.com/kongzhecn/OMG). Two things of it are left out: attention that is copied from the layout, which changes nothing inside
the regions; and the detector: here a region is what differs from the background in the concept's part of the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.protocol import GUIDANCE, STEPS, Drawer
from bench.world import Sprite
from lib_loraclr.model import Conditioning, Deltas, Host
from lib_loraclr.recording import sample
from lib_loraclr.recording.sampling import timesteps

#: of the steps, the share that the layout's own predictions make: the authors' code blends from the 17th of 50 on
SHARED = 0.32
#: how far a pixel's colour is from the background's, of 255 in the channel where it is farthest, where it is no background
APART = 32


@dataclass(frozen=True)
class Part:
    """One concept's regions in some of a batch's pictures.

    Attributes:
        at: which pictures, `[m]`
        deltas: the concept's own
        conditioning: of its prompts, then of as many negative ones, with its own LoRA's text encoder
        region: where it is drawn, `[m, 1, h, w]`, in places of the latents
    """

    at: Tensor
    deltas: Deltas
    conditioning: Conditioning
    region: Tensor


class Blended:
    """A host whose predictions are blended with those of each concept in its regions; all else is the host's own."""

    def __init__(self, host: Host, parts: Sequence[Part], *, until: int) -> None:
        """
        Args:
            until: at timesteps above it the host's own predictions are left alone
        """
        self._host, self._parts, self._until = host, parts, until

    def __getattr__(self, name: str) -> object:
        return getattr(self._host, name)

    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """As `Host.denoise`, for the pictures with their prompts and then again with the negative ones."""
        predicted = self._host.denoise(x, t, conditioning)
        if int(t[0]) > self._until:
            return predicted
        for part in self._parts:
            both = torch.cat([part.at, part.at + len(x) // 2])
            with self._host.apply(part.deltas):
                own = self._host.denoise(x[both], t[both], part.conditioning)
            predicted[both] = torch.where(torch.cat([part.region] * 2), own, predicted[both])
        return predicted


class OMG:
    """Draws by noise blending.

    Args of the constructor:
        host: the base model
        deltas: concept's words -> what its LoRA changes
    """

    def __init__(self, host: Host, deltas: Mapping[str, Deltas], shared: float = SHARED) -> None:
        self._host, self._deltas = host, deltas
        self._until = int(timesteps(STEPS, len(host.alphas_cumprod))[round(shared * STEPS)])

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], named: Sequence[Sequence[Sprite]], seeds: Sequence[int], size: tuple[int, int]
    ) -> Tensor:
        """Clean latents of one batch of pictures, as `protocol.Drawer` says."""
        asked = [layout_prompt(prompt, row) for prompt, row in zip(prompts, named, strict=True)]
        options = {"size": size, "steps": STEPS, "guidance": GUIDANCE}
        layout = sample(self._host, asked, seeds, **options)
        regions = [
            regions_of(picture, len(row), tuple(layout.shape[-2:]))
            for picture, row in zip(self._host.decode(layout), named, strict=True)
        ]
        blended = Blended(self._host, self._parts(prompts, named, regions), until=self._until)
        return sample(blended, asked, seeds, **options)

    def _parts(
        self, prompts: Sequence[str], named: Sequence[Sequence[Sprite]], regions: Sequence[Tensor]
    ) -> list[Part]:
        parts = []
        for sprite in dict.fromkeys(sprite for row in named for sprite in row):
            at = [k for k, row in enumerate(named) if sprite in row]
            asked = [region_prompt(prompts[k], named[k], sprite) for k in at]
            deltas = self._deltas[sprite.words]
            with self._host.apply(deltas):
                conditioning = self._host.encode([*asked, *([""] * len(at))])
            region = torch.stack([regions[k][list(named[k]).index(sprite)] for k in at])
            parts.append(Part(torch.tensor(at), deltas, conditioning, region[:, None]))
        return parts


@contextmanager
def omg(host: Host, deltas: Mapping[str, Deltas]) -> Iterator[Drawer]:
    """The drawer of the quality table."""
    yield OMG(host, deltas)


def layout_prompt(prompt: str, named: Sequence[Sprite]) -> str:
    """The prompt with the class word in place of each concept's words."""
    for sprite in named:
        prompt = prompt.replace(sprite.words, sprite.noun)
    return prompt


def region_prompt(prompt: str, named: Sequence[Sprite], sprite: Sprite) -> str:
    """The prompt for one of the concepts: with it alone, and what follows the last of them."""
    if len(named) == 1:
        return prompt
    last = max(prompt.rindex(own.words) + len(own.words) for own in named)
    return f"a {sprite.words}{prompt[last:]}"


def regions_of(picture: Image.Image, parts: int, size: tuple[int, int]) -> Tensor:
    """What is no background in each of a picture's parts side by side, `[parts, h, w]`, in places of the latents.

    The background's colour is the median of the border's. A place with any pixel that is apart from it counts, as a region is
    to hold its concept whole; a part with none has no region, where the authors' detector finds nothing either.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    apart = torch.from_numpy(np.abs(pixels - np.median(border, axis=0)).max(2) > APART)
    places = torch.nn.functional.adaptive_max_pool2d(apart[None].float(), size)[0] > 0
    own = torch.arange(size[1]) * parts // size[1]
    return torch.stack([places & (own == part) for part in range(parts)])
