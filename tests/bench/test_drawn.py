"""Ways to draw without a merge: OMG's noise blending, and P+'s vectors for each cross-attention."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench import extended, omg, quality
from bench.cells import Cells
from bench.extended import Extended, reading_their_own
from bench.omg import OMG, Blended, Part, layout_prompt, region_prompt, regions_of
from bench.protocol import GUIDANCE, STEPS, drawing
from bench.rows import DRAWN
from bench.world import Sprite
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.model import Factors
from lib_loraclr.recording import load_inputs
from lib_loraclr.recording.sampling import initial_noise, noise_and_clean, timesteps
from tests.small import concept
from tests.solving.test_methods import distance

FOX, PENGUIN = Sprite("fox face", "sks animal", "animal"), Sprite("penguin", "ohwx bird", "bird")
PROMPT = "a sks animal and a ohwx bird on a green background"
SIZE = (32, 64)


@pytest.fixture(scope="module")
def deltas(host: DiffusersHost, demo: Path) -> Mapping[str, Mapping[str, Factors]]:
    inputs = load_inputs([concept(demo, name) for name in ("fox-face", "penguin")], host)
    return {given.concept.trigger: given.deltas for given in inputs}


def test_prompts_of_the_layout_and_of_each_region() -> None:
    assert layout_prompt(PROMPT, (FOX, PENGUIN)) == "a animal and a bird on a green background"
    assert region_prompt(PROMPT, (FOX, PENGUIN), FOX) == "a sks animal on a green background"
    assert region_prompt(PROMPT, (FOX, PENGUIN), PENGUIN) == "a ohwx bird on a green background"
    assert region_prompt("my sks animal at the beach", (FOX,), FOX) == "my sks animal at the beach"


def test_a_region_is_what_differs_from_the_background_in_its_part() -> None:
    picture = Image.new("RGB", (256, 128), (70, 160, 80))
    ImageDraw.Draw(picture).rectangle((40, 48, 79, 63), fill=(200, 160, 80))
    left, right = regions_of(picture, 2, (16, 32))
    assert left.nonzero().tolist() == [[y, x] for y in (6, 7) for x in (5, 6, 7, 8, 9)]
    assert not right.any(), "nothing was drawn there"
    (whole,) = regions_of(picture, 1, (16, 32))
    assert torch.equal(whole, left)


@torch.no_grad()
def denoised_by_hand(host: DiffusersHost, deltas: Mapping, regions: Tensor, shared: int) -> Tensor:
    """One picture, every prediction of its own, blended place by place."""
    schedule = timesteps(STEPS, 1000).tolist()
    x = initial_noise(host, [7], *SIZE)
    for step, now in enumerate(schedule):
        t = torch.tensor([now])

        def guided(own: Mapping, prompt: str, x: Tensor = x, t: Tensor = t) -> Tensor:
            with host.apply(own):
                asked, negative = (host.denoise(x, t, host.encode([text])) for text in (prompt, ""))
            return negative + GUIDANCE * (asked - negative)

        noise = guided({}, layout_prompt(PROMPT, (FOX, PENGUIN)))
        if step >= shared:
            for region, sprite in zip(regions, (FOX, PENGUIN), strict=True):
                own = guided(deltas[sprite.words], f"a {sprite.words} on a green background")
                noise = torch.where(region, own, noise)
        noise, clean = noise_and_clean(host, x, t, noise)
        if step + 1 < len(schedule):
            alpha = host.alphas_cumprod[schedule[step + 1]]
            x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return clean


def test_omg_by_hand(host: DiffusersHost, deltas: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another picture in the batch, which names the two the other way round."""
    regions = torch.zeros(2, 4, 8, dtype=torch.bool)
    regions[0, 1:3, 1:3] = regions[1, :, 5:] = True
    monkeypatch.setattr(omg, "regions_of", lambda *_: regions)
    other = "a ohwx bird and a sks animal on a white background"
    found = OMG(host, deltas)([PROMPT, other], [(FOX, PENGUIN), (PENGUIN, FOX)], [7, 8], SIZE)
    expected = denoised_by_hand(host, deltas, regions, shared=5)
    assert distance(found[:1], expected) < 1e-3
    late = OMG(host, deltas, shared=0.5)([PROMPT], [(FOX, PENGUIN)], [7], SIZE)
    assert distance(late, expected) > 0.05, "control: where the blending begins matters"


@torch.no_grad()
def test_a_region_that_is_everything_is_the_lora_alone(
    host: DiffusersHost, deltas: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, everything = "a photo of a sks animal", torch.ones(1, 4, 8, dtype=torch.bool)
    monkeypatch.setattr(omg, "regions_of", lambda *_: everything)
    found = OMG(host, deltas, shared=0)([prompt], [(FOX,)], [3], SIZE)
    with host.apply(deltas["sks animal"]):
        alone = drawing(host)([prompt], [(FOX,)], [3], SIZE)
    assert distance(found, alone) < 1e-4
    monkeypatch.setattr(omg, "regions_of", lambda *_: ~everything)
    found = OMG(host, deltas, shared=0)([prompt], [(FOX,)], [3], SIZE)
    assert distance(found, drawing(host)(["a photo of a animal"], [(FOX,)], [3], SIZE)) < 1e-4
    assert distance(found, alone) > 0.1, "control"


def test_a_blended_host_is_the_host_otherwise(host: DiffusersHost) -> None:
    blended = Blended(host, [Part(torch.tensor([0]), {}, host.encode(["", ""]), torch.ones(1, 1, 4, 4) > 0)], until=500)
    assert blended.alphas_cumprod is host.alphas_cumprod
    x, conditioning = torch.randn(2, 4, 4, 4), host.encode(["a cat", ""])
    early = torch.tensor([900, 900])
    assert torch.equal(blended.denoise(x, early, conditioning), host.denoise(x, early, conditioning))


@torch.no_grad()
def test_each_cross_attention_reads_its_own_context(host: DiffusersHost) -> None:
    """With one vector for all it is textual inversion; with another for one attention, that one's keys alone are others."""
    modules = extended.cross_attentions(host)
    vector = torch.randn(1, 128) * 0.02
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    keys: list[list[Tensor]] = []
    handles = [module.to_k.register_forward_hook(lambda _, __, output: keys[-1].append(output)) for module in modules]

    def asked(vectors: Tensor) -> Tensor:
        keys.append([])
        own = Extended(host, {"sks animal": vectors})
        with reading_their_own(host):
            return own.denoise(x, t, own.encode(["a photo of a sks animal"]))

    same = asked(vector.repeat(len(modules), 1))
    host.text_encoders[0].vectors["sks animal"] = vector
    keys.append([])
    inverted = host.denoise(x, t, host.encode(["a photo of a sks animal"]))
    host.text_encoders[0].vectors.clear()
    assert distance(same, inverted) < 1e-5
    changed = vector.repeat(len(modules), 1)
    changed[3] = torch.randn(128) * 0.02
    asked(changed)
    ran = [module for name, module in host.unet.named_modules() if name.endswith("attn2")]
    assert ran == modules and len(keys[0]) == len(modules)
    for handle in handles:
        handle.remove()
    # in the order in which they run: up to the one whose vector is another all keys are those of before
    different = [distance(own, before) > 1e-6 for own, before in zip(keys[-1], keys[0], strict=True)]
    assert sum(different) == 1, "the context of one attention alone is another"
    assert not host.text_encoders[0].vectors, "prompts do not call them outside"


def test_learnt_vectors_are_called_and_predict_better(
    host: DiffusersHost, deltas: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extended, "PICTURES", 4)
    monkeypatch.setattr(extended, "BATCH", 4)
    templates = ("a photo of a {trigger}",)
    seen = {}

    def learnt(host: DiffusersHost, sprite: Sprite, latents: Tensor, prompts: list[str], **options: int) -> Tensor:
        seen.update(latents=latents, prompts=prompts)
        return original(host, sprite, latents, prompts, **options)

    original = extended.learnt
    monkeypatch.setattr(extended, "learnt", learnt)
    before = extended.first_vectors(host, FOX)
    made = {}
    monkeypatch.setattr(extended, "Extended", lambda host, vectors: made.update(vectors) or Extended(host, vectors))
    with extended.extended_conditioning(host, deltas, [FOX], templates, steps=12, size=(64, 64)) as draw:
        drawn = draw(["a photo of a sks animal"], [(FOX,)], [1], (64, 64))
    assert seen["prompts"] == ["a photo of a sks animal"] * 4 and drawn.shape == (1, 4, 8, 8)
    assert made["sks animal"].shape == before.shape and not torch.equal(made["sks animal"], before)
    latents = seen["latents"]
    errors = []
    for vectors in (before, made["sks animal"].detach()):
        own, total = Extended(host, {"sks animal": vectors}), 0.0
        with torch.no_grad(), reading_their_own(host):
            conditioning = own.encode(seen["prompts"])
            for seed, now in enumerate((100, 300, 500, 700, 900)):
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
                signal = host.alphas_cumprod[now]
                noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
                total += float((own.denoise(noisy, torch.full((4,), now), conditioning) - noise).square().mean())
        errors.append(total)
    assert errors[1] < 0.99 * errors[0]
    usual = host.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([5]), host.encode(["a cat"]))
    assert usual.isfinite().all(), "the host reads usual prompts again"


@pytest.mark.parametrize("row", DRAWN)
def test_a_way_to_draw_is_a_row(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged like a model, with neither retention nor rank."""
    monkeypatch.setattr(extended, "PICTURES", 1)
    monkeypatch.setattr("bench.rows.extended_conditioning", _with_one_step)
    monkeypatch.setattr("bench.protocol.SIDE", 32)
    for module in ("protocol", "omg", "extended"):
        monkeypatch.setattr(f"bench.{module}.STEPS", 2)
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    sizes = ["--one", "1", "--two", "1", "--three", "0", "--unseen", "1", "--regions", "0"]
    arguments = parser.parse_args(["--sets", "n2", "--rows", row, *sizes])
    arguments.full, arguments.results = False, tmp_path
    quality.main(arguments)
    figures = Cells("quality", tmp_path).known(quality.cell("n2", 0, row))
    assert figures["identity"][1] == 2 and figures["two"]["right"][1] == 1 and "retention" not in figures
    assert figures["seconds"] >= 0
    assert f"| {row} |" in (tmp_path / "quality.md").read_text("utf-8")


def _with_one_step(*arguments: object, **options: object) -> object:
    return extended.extended_conditioning(*arguments, **{**options, "steps": 1, "size": (32, 32)})
