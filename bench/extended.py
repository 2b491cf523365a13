"""P+ (Voynov et al., arXiv 2303.09522): a vector of its own for each concept and cross-attention, learnt from pictures.

Extended Textual Inversion: all weights stay as they are, and a prompt is encoded once for each cross-attention of the UNet, each
time with that layer's own vector in place of the concept's words. Several concepts need no merge; they are called together. The
pictures are those that each concept's own LoRA draws, since nobody else's are at hand, with the prompts that drew them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.attended import cross_attentions
from bench.protocol import GUIDANCE, STEPS, Drawer
from bench.world import Sprite
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.model import Conditioning, Deltas
from lib_loraclr.recording import sample

#: of each concept's own LoRA
PICTURES = 32
#: in the paper 500 steps of 8 at .005
TRAINING_STEPS, BATCH, LEARNING_RATE = 120, 8, 0.005
#: first seed of the pictures
SEED = 500_000
_TOKENS = 77

#: concept's words -> its vectors, `[layers, d]`
Vectors = Mapping[str, Tensor]


class Extended:
    """A host in which prompts call vectors that are different for each cross-attention; all else is the host's own.

    Its conditioning has the contexts of all cross-attentions one after the other, `[b, layers * 77, d]`, which only a UNet inside
    `reading_their_own` understands.
    """

    def __init__(self, host: DiffusersHost, vectors: Vectors) -> None:
        self._host, self._vectors = host, vectors

    def __getattr__(self, name: str) -> object:
        return getattr(self._host, name)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """As `Host.encode`, differentiable where the vectors require gradients."""
        called = self._host.text_encoders[0].vectors
        contexts = []
        try:
            for layer in range(len(cross_attentions(self._host))):
                called.update({words: own[layer : layer + 1] for words, own in self._vectors.items()})
                contexts.append(self._host.encode(prompts).tensors["context"])
        finally:
            for words in self._vectors:
                called.pop(words, None)
        return Conditioning({"context": torch.cat(contexts, dim=1)})


@contextmanager
def reading_their_own(host: DiffusersHost) -> Iterator[None]:
    """Inside, each cross-attention reads its own part of a long context."""

    def reading(place: int):  # noqa: ANN202
        def choose(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[tuple, dict]:
            context = named["encoder_hidden_states"][:, place * _TOKENS : (place + 1) * _TOKENS]
            return arguments, {**named, "encoder_hidden_states": context}

        return choose

    handles = [
        module.register_forward_pre_hook(reading(place), with_kwargs=True)
        for place, module in enumerate(cross_attentions(host))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def learnt(
    host: DiffusersHost, sprite: Sprite, latents: Tensor, prompts: Sequence[str], *, steps: int, seed: int
) -> Tensor:
    """A concept's vectors, `[layers, d]`: those with which the model predicts the noise that was added to its pictures.

    Args:
        latents: of pictures, `[n, c, h, w]`
        prompts: of each picture, with the concept's words in it
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = first_vectors(host, sprite).requires_grad_()
    extended = Extended(host, {sprite.words: vectors})
    optimizer = torch.optim.AdamW([vectors], LEARNING_RATE, weight_decay=1e-2)
    for _ in range(steps):
        picked = torch.randint(len(latents), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
        t = torch.randint(len(host.alphas_cumprod), (BATCH,), generator=generator)
        signal = host.alphas_cumprod[t].float()[:, None, None, None]
        noisy = signal.sqrt() * latents[picked] + (1 - signal).sqrt() * noise
        predicted = extended.denoise(noisy, t, extended.encode([prompts[k] for k in picked.tolist()]))
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vectors.detach()


def first_vectors(host: DiffusersHost, sprite: Sprite) -> Tensor:
    """Where learning begins: for every cross-attention the class word's own vector, of several tokens the last; `[layers, d]`."""
    encoder = host.text_encoders[0]
    *_, token = encoder.tokenizer(sprite.noun, add_special_tokens=False).input_ids
    return encoder.table.weight[token].detach().clone().repeat(len(cross_attentions(host)), 1)


@contextmanager
def extended_conditioning(
    host: DiffusersHost,
    deltas: Mapping[str, Deltas],
    sprites: Sequence[Sprite],
    templates: Sequence[str],
    *,
    steps: int = TRAINING_STEPS,
    size: tuple[int, int],
    seed: int = 0,
) -> Iterator[Drawer]:
    """Learn each concept's vectors from its own LoRA's pictures, and draw with them.

    Args:
        deltas: concept's words -> what its LoRA changes
        templates: of the pictures' prompts, with `{trigger}`
        size: of the pictures, in pixels
    """
    vectors = {}
    for place, sprite in enumerate(sprites):
        prompts = [templates[k % len(templates)].replace("{trigger}", sprite.words) for k in range(PICTURES)]
        first = SEED + PICTURES * (place + len(sprites) * seed)
        with host.apply(deltas[sprite.words]):
            seeds = range(first, first + PICTURES)
            latents = sample(host, prompts, seeds, size=size, steps=STEPS, guidance=GUIDANCE)
        with reading_their_own(host):
            vectors[sprite.words] = learnt(host, sprite, latents, prompts, steps=steps, seed=seed)
    extended = Extended(host, vectors)

    def draw(
        prompts: Sequence[str], named: Sequence[Sequence[Sprite]], seeds: Sequence[int], size: tuple[int, int]
    ) -> Tensor:
        return sample(extended, prompts, seeds, size=size, steps=STEPS, guidance=GUIDANCE)

    with reading_their_own(host):
        yield draw
