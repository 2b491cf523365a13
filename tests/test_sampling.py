"""Noise schedule and denoising loop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from lib_loraclr.hosts.base import Conditioning, Host
from lib_loraclr.sampling import denoising_path, initial_noise, noise_and_clean, sample, timesteps


def test_timesteps_start_at_full_noise_and_fall_evenly() -> None:
    assert timesteps(4, 1000).tolist() == [999, 749, 499, 249]
    assert timesteps(1000, 1000).tolist() == list(range(999, -1, -1))


def test_noise_depends_on_the_seed_and_not_on_its_neighbours(host: Host) -> None:
    both, one = initial_noise(host, [5, 6], 128, 256), initial_noise(host, [6], 128, 256)
    assert both.shape == (2, 4, 16, 32)
    assert torch.equal(both[1], one[0])
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_clean_are_those_the_input_was_mixed_from(kind: str) -> None:
    alphas = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    fake = SimpleNamespace(alphas_cumprod=alphas, prediction_type=kind)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([10, 500, 990])
    a = alphas[t][:, None, None, None]
    x = a.sqrt() * clean + (1 - a).sqrt() * noise
    output = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean
    for found, expected in zip(noise_and_clean(fake, x, t, output), (noise, clean), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_path_is_diffusers_ddim_with_guidance(host: Host) -> None:
    """A second way: diffusers' own scheduler, prompts evaluated one at a time."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == timesteps(5, 1000).tolist()
    with torch.no_grad():
        positive, negative = host.encode(["a photo of a cat"]), host.encode([""])
        x = initial_noise(host, [11], 64, 64)
        for t in scheduler.timesteps:
            e, u = (host.denoise(x, t[None], c) for c in (positive, negative))
            x = scheduler.step(u + 3.0 * (e - u), t, x).prev_sample
        ours = sample(host, ["a photo of a cat"], [11], size=(64, 64), steps=5, guidance=3.0)
    # diffusers steps to alpha of t = 0 at the end, we to the clean picture itself
    torch.testing.assert_close(ours, x, atol=0.05, rtol=0.05)


def test_the_path_reports_what_the_network_said(host: Host) -> None:
    with torch.no_grad():
        conditioning, negative = host.encode(["a cat"]), host.encode([""])
    *steps, last = denoising_path(host, initial_noise(host, [0], 64, 64), conditioning, negative, steps=2, guidance=4.0)
    assert [int(step.t[0]) for step in steps] == [999, 499]
    with torch.no_grad():
        expected = host.denoise(steps[1].x, steps[1].t, conditioning)
    torch.testing.assert_close(steps[1].conditional, expected, atol=1e-4, rtol=1e-3)
    assert last.shape == (1, 4, 8, 8)


def test_conditionings_are_joined_and_selected_by_sample() -> None:
    one, two = (Conditioning({"context": torch.full((2, 3, 4), value)}) for value in (1.0, 2.0))
    joined = Conditioning.cat([one, two])
    assert len(joined) == 4
    assert joined[[3, 0]].tensors["context"][:, 0, 0].tolist() == [2.0, 1.0]
