"""What prompts make of bundled embeddings in the stand-alone host."""

from __future__ import annotations

import copy

import pytest
import torch

from lib_loraclr.hosts.diffusers.embeddings import tokenized
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Tiny
from tests.tiny_hosts import Open, pipeline, random_embedding

PROMPTS = ["a photo of a red cat on a road", "cat red, a dog", "", "red cat red cat " + "very " * 90]


@pytest.mark.parametrize("kind", [tiny.SD1, tiny.SD2, tiny.SDXL, tiny.REFINER], ids=lambda kind: kind.name)
@torch.no_grad()
def test_an_embedding_is_what_its_words_would_be_if_the_vocabulary_had_its_vectors(opened: Open, kind: Tiny) -> None:
    """A slow second way for an embedding of two vectors whose name is two words: the table itself is changed."""
    host = opened(kind)
    embedding = random_embedding(host, "red cat", 2)
    plain = host.encode(PROMPTS[:1])
    with host.knowing(embedding) as warnings:
        known = host.encode(PROMPTS[:1])
        other_order = host.encode(PROMPTS[1:2])
    changed = copy.deepcopy(host)
    for encoder, vectors in zip(changed.text_encoders, embedding.values(), strict=True):
        words = encoder.tokenizer("red cat", add_special_tokens=False).input_ids
        encoder.table.weight[words] = vectors
    expected = changed.encode(PROMPTS[:1])
    assert warnings == ()
    for part, tensor in expected.tensors.items():
        torch.testing.assert_close(known.tensors[part], tensor)
    assert not torch.allclose(plain.tensors["context"], known.tensors["context"], atol=0.01), (
        "control: it does something"
    )
    assert torch.equal(other_order.tensors["context"], host.encode(PROMPTS[1:2]).tensors["context"]), (
        "only its name calls it"
    )
    assert torch.equal(plain.tensors["context"], host.encode(PROMPTS[:1]).tensors["context"]), "forgotten afterwards"


@pytest.mark.parametrize("vectors", [1, 3])
@torch.no_grad()
def test_an_embedding_is_read_as_diffusers_reads_a_textual_inversion(opened: Open, vectors: int) -> None:
    host = copy.deepcopy(opened(tiny.SD1))
    embedding = random_embedding(host, "glimmer", vectors)
    prompts = ["a photo of a glimmer on a road", "glimmer, a cat and a glimmer"]
    with host.knowing(embedding):
        ours = host.encode(prompts).tensors["context"]
    pipe = pipeline(host)
    pipe.load_textual_inversion(next(iter(embedding.values())), token="glimmer")
    theirs, _ = pipe.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [tiny.SD1, tiny.SDXL], ids=lambda kind: kind.name)
def test_prompts_that_call_none_have_the_tokenizers_own_tokens(opened: Open, kind: Tiny) -> None:
    for encoder in opened(kind).text_encoders:
        padded = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        expected = encoder.tokenizer(PROMPTS, **padded).input_ids
        tokens, places = tokenized(encoder.tokenizer, PROMPTS, {"glimmer": torch.zeros(2, 8)}, 77)
        assert torch.equal(tokens, expected) and places == []


def test_what_is_beyond_the_end_of_a_prompt_is_cut_off(opened: Open) -> None:
    [encoder] = opened(tiny.SD1).text_encoders
    vectors = torch.zeros(50, 8)
    tokens, places = tokenized(encoder.tokenizer, ["red cat red cat red cat"], {"red cat": vectors}, 77)
    assert [(place.start, len(place.vectors)) for place in places] == [(1, 50), (51, 25)]
    assert tokens.shape == (1, 77) and tokens[0, -1] == encoder.tokenizer.eos_token_id
    assert (tokens != encoder.tokenizer.eos_token_id).sum() == 76, "a place must not look like the prompt's end"


def test_of_two_names_the_longer_one_is_called(opened: Open) -> None:
    [encoder] = opened(tiny.SD1).text_encoders
    names = {"red": torch.zeros(1, 8), "red cat": torch.zeros(2, 8)}
    _, places = tokenized(encoder.tokenizer, ["a red cat, a red dog"], names, 77)
    assert [len(place.vectors) for place in places] == [2, 1]


@pytest.mark.parametrize("kind", [tiny.SD1, tiny.SDXL], ids=lambda kind: kind.name)
@torch.no_grad()
def test_an_embedding_for_other_text_encoders_is_warned_about_and_not_called(opened: Open, kind: Tiny) -> None:
    host, other = opened(kind), opened(tiny.SD1 if kind is tiny.SDXL else tiny.SDXL)
    plain = host.encode(["a glimmer"]).tensors["context"]
    with host.knowing(random_embedding(other, "glimmer", 2)) as warnings:
        assert torch.equal(host.encode(["a glimmer"]).tensors["context"], plain)
    assert len(warnings) == 1 and "glimmer was made for other text encoders" in warnings[0]
