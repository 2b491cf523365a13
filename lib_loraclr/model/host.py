"""What the core asks of whatever holds the loaded model (a host), and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .families import Family
from .low_rank import Deltas
from .substitution import Layer

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Conditioning:
    """What the text encoder(s) make of a batch of prompts; the core only selects, joins and moves it.

    Attributes:
        tensors: name -> `[b, ...]`; which names there are is the host's affair
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: slice | Tensor | list[int]) -> Conditioning:
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Batches one after the other. Where prompts are of different lengths, the shorter ones get rows of zeros; a host
        that encodes prompts at different lengths keeps their lengths in a tensor of their own."""
        joined = {name: _cat_padded([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        return Conditioning(joined)


def _cat_padded(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors `[b_i, …]` joined along `b`; those `[b_i, n_i, c]` padded to the longest."""
    if tensors[0].dim() == 3:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [torch.nn.functional.pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in tensors]
    return torch.cat(tensors)


class Host(Protocol):
    """A loaded model. All methods leave it as they found it."""

    family: Family
    name: str
    checkpoint: str
    #: the file or folder it was loaded from
    checkpoint_path: Path
    device: torch.device
    latent_channels: int
    pixels_per_latent: int
    default_size: int
    prediction_type: str
    alphas_cumprod: Tensor
    #: which layer of the text encoder prompts are read from, counted from the last, 1, as the WebUI's "Clip skip" does
    clip_skip: int
    #: whether brackets in prompts are weights, as in the WebUI; else words in them are read like any others
    weighs_words: bool
    #: names that files have for a layer besides its key -> layer key
    aliases: Mapping[str, str]

    def layers(self) -> Mapping[str, Layer]:
        """Layer key -> layer, for every layer of text encoder(s) and UNet that a LoRA could change."""
        ...

    def apply(self, deltas: Deltas) -> AbstractContextManager[None]:
        """The model with these deltas added to its weights. Factors that require gradients get them."""
        ...

    def knowing(self, embeddings: Mapping[str, Tensor]) -> AbstractContextManager[tuple[str, ...]]:
        """Inside, prompts can call these embeddings by their names, as in the WebUI where a LoRA that bundles them is active.

        Args:
            embeddings: by their keys in a LoRA file (`files/embeddings.py`)

        Returns:
            a warning for each that prompts do without
        """
        ...

    def skipping(self, clip_skip: int) -> AbstractContextManager[None]:
        """Inside, prompts are read with another `clip_skip`, where that is not somebody's setting; 0 leaves it as it is."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of `b` prompts, differentiable where factors of a text encoder require gradients."""
        ...

    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output (noise or velocity, see `prediction_type`) `[b, c, h, w]`, fp32, differentiable.

        Args:
            x: noisy latents `[b, c, h, w]`
            t: timesteps `[b]`, integers from 0 (clean) to `len(alphas_cumprod) - 1`
            conditioning: of `b` prompts
        """
        ...

    def refinement_obstacle(self) -> str | None:
        """Why no gradients can be had here, with the remedy; None where they can."""
        ...

    def recomputing(self) -> AbstractContextManager[None]:
        """Inside, activations of the backward pass are recomputed instead of kept: less memory, more time."""
        ...

    def decode(self, latents: Tensor) -> list[Image]:
        """Pictures of latents `[b, c, h, w]`."""
        ...
