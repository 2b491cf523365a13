"""Noise schedule and denoising loop."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from lib_loraclr.model.host import Conditioning, Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.recording.sampling import denoising_path, evaluated, initial_noise, noise_and_clean, sample, timesteps


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


def test_a_path_of_two_models_copies_what_they_differ_by_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of each is in test_examples.py; a graphics card would be given all factors again at every step."""
    key, layer = next(iter(host.layers().items()))
    delta = Factors(torch.ones(layer.shape[0], 1), torch.ones(1, layer.shape[1]))
    moves, applied, apply = [], [], host.apply
    monkeypatch.setattr(Factors, "to", lambda factors, *_: moves.append(1) or Factors(factors.up * 1, factors.down * 1))
    asked = copy.copy(host)
    asked.apply = lambda deltas: applied.append(deltas) or apply({})
    with torch.no_grad():
        conditioning = host.encode(["a cat"])
    apart = ({key: delta}, {key: (delta, delta)})
    noise = initial_noise(host, [0], 64, 64)
    assert len([*denoising_path(asked, noise, conditioning, conditioning, steps=3, guidance=4.0, apart=apart)]) == 4
    assert len(applied) == 6 and len(moves) == 3
    assert {id(applied[k][key][0].up) for k in (0, 2, 4)} == {id(applied[0][key][0].up)} != {id(delta.up)}
    assert [len(deltas[key]) for deltas in applied] == [1, 2] * 3


def test_conditionings_are_joined_and_selected_by_sample() -> None:
    one, two = (Conditioning({"context": torch.full((2, 3, 4), value)}) for value in (1.0, 2.0))
    joined = Conditioning.cat([one, two])
    assert len(joined) == 4
    assert joined[[3, 0]].tensors["context"][:, 0, 0].tolist() == [2.0, 1.0]


class Card:
    """A host whose graphics card holds some samples at a time."""

    device = torch.device("cpu")

    def __init__(self, host: Host, holds: int, error: RuntimeError) -> None:
        self._host, self._holds, self._error, self.asked = host, holds, error, []

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        self.asked.append(len(x))
        if len(x) > self._holds:
            raise self._error
        return self._host.denoise(x, t, conditioning)


OUT_OF_MEMORY = (
    torch.cuda.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Not enough memory, use lower resolution (max approx. 64x64). Need: 0.1GB free, Have:0.0GB free"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=("torch", "cuBLAS", "Doggettx"))
@torch.no_grad()
def test_a_card_that_holds_less_is_asked_for_less_and_that_is_remembered(host: Host, error: RuntimeError) -> None:
    card = Card(host, 2, error)
    x, t = initial_noise(host, range(7), 64, 64), torch.arange(7) * 100
    conditioning = host.encode([f"a photo of {number} cats" for number in range(7)])
    expected = host.denoise(x, t, conditioning)
    torch.testing.assert_close(evaluated(card, x, t, conditioning), expected, rtol=1e-4, atol=1e-5)
    assert card.asked == [7, 4, 2, 2, 2, 1]
    card.asked.clear()
    evaluated(card, x[:3], t[:3], conditioning[:3])
    assert card.asked == [2, 1]
    other = Card(host, 7, error)
    evaluated(other, x, t, conditioning)
    assert other.asked == [7], "another card, another time"


@torch.no_grad()
def test_what_halving_does_not_mend_is_raised(host: Host) -> None:
    x, t = initial_noise(host, range(2), 64, 64), torch.tensor([100, 500])
    conditioning = host.encode(["a cat", "a dog"])
    for holds, error in ((0, OUT_OF_MEMORY[0]), (1, RuntimeError("an illegal memory access"))):
        card = Card(host, holds, error)
        with pytest.raises(RuntimeError, match=str(error)):
            evaluated(card, x, t, conditioning)
        assert card.asked == ([2, 1] if holds == 0 else [2])
