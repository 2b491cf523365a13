"""Rows that look at the trigger: where a picture attends to words, and that the solver sees weighted errors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from bench import attended
from bench.attended import AttendedRows, AttendedRun, attention_to, probabilities, record_attending, row_weights
from bench.bed import Bed
from bench.world import demo_request
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge import denoising
from lib_loraclr.progress import Progress
from lib_loraclr.recording import Examples, Teacher, record_run
from lib_loraclr.request import RecordingOptions
from tests.small import measure_on_little
from tests.solving.test_layer_problem import random_problem
from tests.solving.test_methods import dense, distance

PROMPTS = ["a photo of a sks animal on a red background", "sks animal, and another SKS animal", "a photo of a cat"]
#: layers that read places of the finest and of a coarser picture, and tokens
FINE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
COARSE = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
TOKENS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    """Noisy latents and timesteps of three samples, of a picture that is not square."""
    return torch.randn(3, 4, 8, 16), torch.tensor([900, 500, 100])


def test_the_words_are_found_wherever_they_stand(host: DiffusersHost) -> None:
    tokenizer = host.text_encoders[0].tokenizer
    found = attended.tokens_of(host, PROMPTS, "sks animal")
    rows = tokenizer(PROMPTS, padding="max_length", max_length=77).input_ids
    told = []
    for row, mask in zip(rows, found, strict=True):
        told.append(tokenizer.decode([token for token, own in zip(row, mask, strict=True) if own]))
    assert told == ["sks animal", "sks animal sks animal", ""]
    assert not attended.tokens_of(host, PROMPTS, "").any()


def test_probabilities_head_by_head() -> None:
    query, key = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    found = probabilities(query, key, heads=3, scale=0.7)
    for sample in range(2):
        for head in range(3):
            own = slice(2 * head, 2 * head + 2)
            for place in range(5):
                scores = [0.7 * float(query[sample, place, own] @ key[sample, token, own]) for token in range(4)]
                expected = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
                assert torch.allclose(found[sample, head, place], expected, atol=1e-6)


@torch.no_grad()
def test_what_is_told_of_an_attention_is_what_it_computes_with(
    host: DiffusersHost, points: tuple[Tensor, Tensor]
) -> None:
    """The probabilities times the values are what the module itself goes on with."""
    attention = next(module for name, module in host.unet.named_modules() if name.endswith("attn2"))
    values, results = [], []
    handles = [
        attention.to_v.register_forward_hook(lambda _, __, output: values.append(output)),
        attention.to_out[0].register_forward_pre_hook(lambda _, arguments: results.append(arguments[0])),
    ]
    with attended._queries_and_keys(host) as seen:
        host.denoise(*points, host.encode(PROMPTS))
    for handle in handles:
        handle.remove()
    value = values[0].unflatten(2, (attention.heads, -1)).transpose(1, 2)
    mixed = probabilities(*seen[attention], attention.heads, attention.scale) @ value
    assert distance(mixed.transpose(1, 2).flatten(2), results[0]) < 1e-5


@torch.no_grad()
def test_all_tokens_together_have_all_attention(host: DiffusersHost, points: tuple[Tensor, Tensor]) -> None:
    called = attended.tokens_of(host, PROMPTS, "sks animal")
    run = partial(host.denoise, *points, host.encode(PROMPTS))
    own, others = (attention_to(host, tokens, (8, 16), run) for tokens in (called, ~called))
    assert own.shape == (3, 8, 16) and torch.allclose(own + others, torch.ones(3, 8, 16), atol=1e-5)
    assert 0 < float(own[0].min()) < float(own[0].max()) < 1 and float(own[2].abs().max()) == 0
    weights = attended.relative(own)
    assert torch.allclose(weights.mean((1, 2)), torch.ones(3)) and torch.equal(weights[2], torch.ones(8, 16))


def test_a_row_of_a_coarser_picture_has_the_mean_of_its_places() -> None:
    weights = torch.rand(2, 4, 6)
    assert torch.equal(row_weights(weights, 2 * 24), weights.flatten())
    coarse = [
        weights[s, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for s in range(2) for i in range(2) for j in range(3)
    ]
    assert torch.allclose(row_weights(weights, 2 * 6), torch.stack(coarse))
    for count in (2 * 77, 2, 7):
        assert torch.equal(row_weights(weights, count), torch.ones(count)), "tokens, timesteps, and what fits no sample"


@torch.no_grad()
def test_rows_are_those_of_a_usual_recording_scaled_where_they_are_places(
    host: DiffusersHost, points: tuple[Tensor, Tensor]
) -> None:
    x, t = points
    capacity, nothing = {FINE: 64, COARSE: 32, TOKENS: 64}, torch.zeros(0)
    found = {}
    for words in ("sks animal", "", "words that no prompt has"):
        teacher = Teacher("fox", 0, (0,), words)
        few = Examples(teacher, (), tuple(PROMPTS), x, t, nothing, nothing, None, nothing)
        run = AttendedRun(teacher, {}, 3, denoising(host, x, t, PROMPTS), few)
        found[words] = record_attending(host, run, capacity, 0, Progress())
    usual = record_run(host, run, capacity, 0, Progress())
    for key in capacity:
        for words in ("", "words that no prompt has"):
            assert torch.equal(found[words][key], usual[key]), "nothing is called: every row as it is"
    assert torch.equal(found["sks animal"][TOKENS], usual[TOKENS])
    for key in (FINE, COARSE):
        weighted, plain = found["sks animal"][key].float(), usual[key].float()
        roots = (weighted * plain).sum(1) / plain.square().sum(1)
        assert distance(weighted, roots[:, None] * plain) < 1e-2, "a row keeps its direction, up to rounding to half"
        assert float(roots.min()) < 0.97 < 1.03 < float(roots.max())
        assert (roots - 1).abs().lt(1e-3).sum() >= 5, "those of the prompt without the words"


def test_scaled_rows_are_weighted_errors() -> None:
    """Rows that count twice or three times beside the same rows written down as often."""
    problem = random_problem()
    generator = torch.Generator().manual_seed(0)
    scaled, repeated = [], []
    for recording in problem.recordings:
        times = torch.randint(1, 4, (len(recording.inputs),), generator=generator)
        roots = (times / times.double().mean()).sqrt()
        scaled.append(replace(recording, inputs=recording.inputs * roots[:, None]))
        repeated.append(replace(recording, inputs=recording.inputs.repeat_interleave(times, dim=0)))
    found, expected = (dense("ridge", replace(problem, recordings=tuple(own))) for own in (scaled, repeated))
    # the ridge, relative to the mean energy of the rows, is the same too
    assert distance(found, expected) < 1e-9
    assert distance(dense("ridge", problem), found) > 1e-3, "control: weights matter"


def test_a_merge_by_attended_rows_differs_and_keeps_every_layer(
    host: DiffusersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    request, _ = demo_request(("fox-face", "pizza"), "default")
    recording = RecordingOptions(paths=1, steps=3, height=64, width=64)
    bed = Bed(replace(request, recording=recording, memory_mb=64), host)
    plain, made = bed.merge("ridge", {}, rank="full"), bed.merge("ridge", {}, rank="full", kind=AttendedRows)
    assert made.factors.keys() == plain.factors.keys()
    moved = {key: distance(made.factors[key].dense(), plain.factors[key].dense()) for key in plain.factors}
    assert moved[FINE] > 1e-3
    assert all(change == 0 for key, change in moved.items() if key.startswith("lora_te_")), "only the picture's places"
