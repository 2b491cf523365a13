"""The demo world's judge: a classifier of sprites that is independent of the diffusion model.

Only the benchmark reads it; the product never does. Architecture and protocol: demo/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

DEMO = Path(__file__).resolve().parents[1] / "demo"


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if (c_in, stride) != (c_out, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.skip(x))


class Judge(nn.Module):
    """Tells which of 48 sprites a picture shows."""

    def __init__(self, folder: Path = DEMO) -> None:
        super().__init__()
        self.conv_in, self.norm_in = nn.Conv2d(3, 32, 3, 1, 1), nn.BatchNorm2d(32)
        widths = [(32, 48, 2), (48, 96, 2), (96, 192, 2), (192, 192, 1)]
        self.blocks = nn.Sequential(*[_Block(*width) for width in widths])
        self.head = nn.Linear(192, 2974)
        self.register_buffer("prototypes", torch.empty(48, 192))
        # the file leaves out batch norm's counters, which only training uses
        missing, unexpected = self.load_state_dict(load_file(folder / "judge.safetensors"), strict=False)
        assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
        self.names: list[str] = json.loads((folder / "judge.json").read_text("utf-8"))["prototypes"]
        self.requires_grad_(False).eval()

    def embed(self, pictures: Tensor) -> Tensor:
        """`[b, 3, 128, 128]` in -1…1 -> unit vectors `[b, 192]`."""
        x = nn.functional.avg_pool2d(pictures, 4)
        x = self.blocks(torch.relu(self.norm_in(self.conv_in(x))))
        return nn.functional.normalize(x.mean((2, 3)), dim=1)

    def identity(self, pictures: Sequence[Image.Image], name: str) -> tuple[Tensor, Tensor]:
        """Per picture: 1 where `name`'s prototype is the nearest of 48, and the cosine with it, each `[b]`."""
        cosines = self.embed(to_tensor(pictures)) @ self.prototypes.mT
        own = self.names.index(name)
        return (cosines.argmax(1) == own).float(), cosines[:, own]

    def nearest(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Per picture, the name of the prototype that is nearest of the 48."""
        return [
            self.names[place] for place in (self.embed(to_tensor(pictures)) @ self.prototypes.mT).argmax(1).tolist()
        ]


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as `[b, 3, h, w]` in -1…1; of none at all that of the judge's own size, `[0, 3, 128, 128]`."""
    if not pictures:
        return torch.empty(0, 3, 128, 128)
    arrays = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
