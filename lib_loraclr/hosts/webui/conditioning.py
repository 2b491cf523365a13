"""Prompts as a generation in the WebUI reads them, in batches of which none changes another.

A conditioning has `context` `[b, n, c]` and `length` `[b]`, rows of the context that are the prompt's own, a multiple of 77: the
WebUI gives long prompts more. What else is in it is the host's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...model import Conditioning
from . import modules


def encode(prompts: Sequence[str], encoder: Any, learned: Callable[[list[str]], Conditioning]) -> Conditioning:
    """Conditioning of `b` prompts, each as if it were encoded alone.

    Args:
        encoder: the WebUI's text encoder, for its `process_texts`
        learned: conditioning of texts that may be encoded together; an empty text comes alone, as the negative prompt
    """
    texts = [_final_text(prompt) for prompt in prompts]
    encoded: dict[str, Conditioning] = {}
    for group in _groups(encoder, sorted(set(texts))):
        conditioning = learned(group)
        encoded.update((text, conditioning[place : place + 1]) for place, text in enumerate(group))
    return Conditioning.cat([encoded[text] for text in texts])


def _final_text(prompt: str) -> str:
    """What is encoded: no `<lora:…>` tags, and of an edited prompt (`[from:to:when]`) what it ends as."""
    text, _ = modules.module("extra_networks").parse_prompt(prompt)
    schedule = modules.module("prompt_parser").get_learned_conditioning_prompt_schedules([text], 1)[0]
    return schedule[-1][1]


def _groups(encoder: Any, texts: Sequence[str]) -> Iterator[list[str]]:
    """Prompts that can be encoded together without one changing another.

    The WebUI encodes one prompt at a time: in a batch, emphasis is normalised by the mean of all, and all are as long as
    the longest. An empty prompt is a negative one, which SDXL replaces by zeros.
    """
    together = []
    for text in texts:
        [chunks], _ = encoder.process_texts([text])
        plain = len(chunks) == 1 and all(multiplier == 1.0 for multiplier in chunks[0].multipliers)
        if plain and text:
            together.append(text)
        else:
            yield [text]
    if together:
        yield together


def denoise(
    x: Tensor, t: Tensor, conditioning: Conditioning, run: Callable[[Tensor, Tensor, Conditioning], Tensor]
) -> Tensor:
    """The network's output for `b` noisy latents, `[b, c, h, w]`, whatever lengths their prompts have.

    Args:
        run: the network's output for some of them, whose contexts are all as long as their prompts
    """
    lengths = conditioning.tensors["length"]
    results, places = [], []
    for length in sorted(set(lengths.tolist())):
        rows = torch.nonzero(lengths == length).flatten()
        everyone = len(rows) == len(lengths)
        part = conditioning if everyone else conditioning[rows]
        cut = Conditioning({**part.tensors, "context": part.tensors["context"][:, :length]})
        results.append(run(x if everyone else x[rows], t if everyone else t[rows], cut))
        places.append(rows)
    if len(results) == 1:
        return results[0]
    return torch.cat(results)[torch.cat(places).argsort().to(x.device)]


@torch.no_grad()
def all_masked(model: Any, channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """What the WebUI's txt2img gives an inpainting UNet beside latents of this size, `[1, 1 + c, height, width]`.

    A mask of ones, and the latents of grey. The WebUI draws them from the VAE's distribution; here always the same ones,
    so that a merge can be repeated.

    Args:
        model: the WebUI's
        channels: `c`, of its latents
    """
    processing = modules.module("processing")
    latents = torch.zeros(1, channels, height, width, device=device)
    with torch.random.fork_rng(), modules.module("devices").autocast():
        torch.manual_seed(0)
        return processing.txt2img_image_conditioning(
            model, latents, width * processing.opt_f, height * processing.opt_f
        )
