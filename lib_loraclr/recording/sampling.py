"""Noise schedule and denoising loop on top of a host: one and the same for recording, measuring and previews."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model import Conditioning, Deltas, Host, free_cached, is_out_of_memory, on_device

#: samples per evaluation of the model while sampling (doubled by guidance)
BATCH = 8


#: host -> how many samples its graphics card holds at a time, once more were too many
_holds: WeakKeyDictionary[Host, int] = WeakKeyDictionary()


@torch.no_grad()
def evaluated(
    host: Host,
    x: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    attempt: Callable[[range], AbstractContextManager[None]] = nullcontext,
    first: int = 0,
) -> Tensor:
    """As `Host.denoise`, without gradients, and in as many parts as the graphics card needs.

    Args:
        attempt: opened for each time that the model is tried, with the numbers of the samples
        first: number of the first sample

    Raises:
        RuntimeError: its memory runs out with one sample
    """
    most = _holds.get(host, len(x))
    if most < len(x):
        parts = [slice(start, start + most) for start in range(0, len(x), most)]
        return torch.cat([evaluated(host, x[p], t[p], conditioning[p], attempt, first + p.start) for p in parts])
    try:
        with attempt(range(first, first + len(x))):
            return host.denoise(x, t, conditioning)
    except RuntimeError as error:
        if len(x) == 1 or not is_out_of_memory(error):
            raise
    # not inside "except": the error holds on to what filled the memory
    _holds[host] = math.ceil(len(x) / 2)
    free_cached(host.device)
    return evaluated(host, x, t, conditioning, attempt, first)


def asked_in_parts(host: Host) -> tuple[str, ...]:
    """A warning where a host's graphics card did not hold as many samples at a time as it was asked for."""
    if host not in _holds:
        return ()
    return (
        f"The graphics memory ran out while the model was asked: from then on it was asked for {_holds[host]} at a time, which "
        "takes longer and changes nothing else.",
    )


def timesteps(count: int, train_steps: int) -> Tensor:
    """`count` timesteps from most to least noise, `[count]`, evenly spaced and ending above 0 ("trailing").

    Trailing spacing starts at full noise, as Lin et al. (arXiv 2305.08891, Table 2) recommend.
    """
    return (torch.arange(count, 0, -1) * train_steps / count).round().long() - 1


def initial_noise(host: Host, seeds: Sequence[int], height: int, width: int) -> Tensor:
    """One noise latent per seed, `[b, c, h, w]`: drawn on the CPU in fp32, so that it is the same on every device."""
    shape = (host.latent_channels, height // host.pixels_per_latent, width // host.pixels_per_latent)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(host.device)


def noise_and_clean(host: Host, x: Tensor, t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and clean latents that a network output stands for, each `[b, c, h, w]`.

    `x = sqrt(a) clean + sqrt(1 - a) noise`; a velocity is `v = sqrt(a) noise - sqrt(1 - a) clean`
    (Salimans and Ho, arXiv 2202.00512, appendix D).
    """
    alpha = host.alphas_cumprod[t.cpu()].to(x)[:, None, None, None]
    signal, noise_level = alpha.sqrt(), (1 - alpha).sqrt()
    if host.prediction_type == "v_prediction":
        return noise_level * x + signal * output, signal * x - noise_level * output
    return output, (x - noise_level * output) / signal


@dataclass(frozen=True)
class Step:
    """One step of a denoising path, all tensors `[b, ...]`: what went in, and what the network said with each prompt."""

    x: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor


@torch.no_grad()
def denoising_path(
    host: Host,
    noise: Tensor,
    conditioning: Conditioning,
    negative: Conditioning,
    *,
    steps: int,
    guidance: float,
    apart: tuple[Deltas, Deltas] | None = None,
) -> Iterator[Step | Tensor]:
    """DDIM (Song et al., arXiv 2010.02502, eq. 12, sigma = 0) with classifier-free guidance.

    Yields every step, and last the clean latents `[b, c, h, w]`.

    Args:
        noise: `[b, c, h, w]`
        conditioning, negative: of `b` prompts each
        apart: deltas with which the model is asked for the prompts, and for the negative ones; None: as it is, for both at once
    """
    prompts = conditioning, negative
    asked = _by_two_models(host, *prompts, apart) if apart else _at_once(host, *prompts)
    schedule = timesteps(steps, len(host.alphas_cumprod)).tolist()
    x = noise
    for now, following in zip(schedule, [*schedule[1:], None], strict=True):
        t = torch.full((len(x),), now, device=x.device)
        conditional, unconditional = asked(x, t)
        yield Step(x, t, conditional, unconditional)
        guided = unconditional + guidance * (conditional - unconditional)
        noise_part, clean = noise_and_clean(host, x, t, guided)
        if following is None:
            x = clean
        else:
            alpha = host.alphas_cumprod[following].to(x)
            x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise_part
    yield x


#: what is predicted for the prompts and for the negative ones, at `x [b, c, h, w]` and `t [b]`
_Asked = Callable[[Tensor, Tensor], Sequence[Tensor]]


def _at_once(host: Host, conditioning: Conditioning, negative: Conditioning) -> _Asked:
    both = Conditioning.cat([conditioning, negative])
    return lambda x, t: evaluated(host, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)


def _by_two_models(
    host: Host, conditioning: Conditioning, negative: Conditioning, deltas: tuple[Deltas, Deltas]
) -> _Asked:
    models = [on_device(own, host.device) for own in deltas]

    def asked(x: Tensor, t: Tensor) -> list[Tensor]:
        outputs = []
        for own, conditioned in zip(models, (conditioning, negative), strict=True):
            with host.apply(own):
                outputs.append(evaluated(host, x, t, conditioned))
        return outputs

    return asked


def sample(
    host: Host,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    negative: str = "",
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Clean latents `[b, c, h, w]` of one picture per prompt and seed.

    Args:
        prompts, seeds: `b` each
        size: height and width in pixels
        tick: called after every evaluation of the model
    """
    results = []
    for start in range(0, len(prompts), BATCH):
        chunk = list(prompts[start : start + BATCH])
        noise = initial_noise(host, seeds[start : start + BATCH], *size)
        with torch.no_grad():
            conditioning, negatives = host.encode(chunk), host.encode([negative] * len(chunk))
        for step in denoising_path(host, noise, conditioning, negatives, steps=steps, guidance=guidance):
            if isinstance(step, Tensor):
                results.append(step)
            else:
                tick()
    return torch.cat(results)
