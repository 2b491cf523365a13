"""Embeddings that LoRAs bundle: which forms are known, and what prompts make of them in the stand-alone host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.embeddings import embedding_name, embeddings_by_name
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.hosts.diffusers.embeddings import tokenized
from lib_loraclr.merge.merging import measure_loras, merge_loras
from lib_loraclr.output import preview
from lib_loraclr.output.preview import PreviewOptions, preview_grid
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.recording.inputs import load_inputs
from tests import tiny_checkpoints as tiny
from tests.small import concept, request
from tests.tiny_checkpoints import Tiny
from tests.tiny_hosts import Open, pipeline

PROMPTS = ["a photo of a red cat on a road", "cat red, a dog", "", "red cat red cat " + "very " * 90]


def widths(host: DiffusersHost) -> list[int]:
    return [encoder.table.weight.shape[1] for encoder in host.text_encoders]


def random_embedding(host: DiffusersHost, name: str, vectors: int, seed: int = 0) -> dict[str, Tensor]:
    """One that fits, by its keys in a file."""
    generator = torch.Generator().manual_seed(seed)
    parts = ("clip_l", "clip_g") if len(widths(host)) == 2 else ("string_to_param.*",)
    return {
        f"bundle_emb.{name}.{part}": torch.randn(vectors, width, generator=generator)
        for part, width in zip(parts, widths(host), strict=True)
    }


# -- files


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ({"string_to_param.*": (2, 8), "step": (1,)}, {"string_to_param.*"}),
        ({"clip_l": (2, 8), "clip_g": (2, 12)}, {"clip_l", "clip_g"}),
        ({"clip_l": (2, 8), "clip_g": (2, 12), "other": (1, 3)}, {"clip_l", "clip_g", "other"}),
        ({"emb_params": (2, 8)}, {"emb_params"}),
        ({"a.b": (8,)}, {"a.b"}),
    ],
)
def test_a_form_that_the_webui_loads_is_known(parts: dict[str, tuple[int, ...]], kept: set[str]) -> None:
    found = embeddings_by_name({f"bundle_emb.sks.{part}": torch.zeros(shape) for part, shape in parts.items()})
    assert set(found) == {"sks"} and set(found["sks"]) == kept
    assert all(tensor.dim() == 2 for tensor in found["sks"].values())


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"sks.one": (2, 8), "sks.two": (2, 8)}, r"sks has .*sks\.one \[2, 8\], bundle_emb\.sks\.two"),
        ({"sks.clip_l": (2, 8), "sks.clip_g": (3, 12)}, r"sks has .*clip_g \[3, 12\]"),
        ({"sks.string_to_param.*": (1, 2, 8)}, r"sks has .*\[1, 2, 8\]"),
        ({"sks": (2, 8)}, "sks has"),
        ({".clip_l": (2, 8)}, r"\(without a name\) has"),
    ],
)
def test_a_form_that_the_webui_would_not_load_is_refused(
    parts: dict[str, tuple[int, ...]], told: str, tmp_path: Path, write_lora: Callable[..., Path]
) -> None:
    extra = {f"bundle_emb.{part}": torch.zeros(shape) for part, shape in parts.items()}
    write_lora(tmp_path / "odd.safetensors", extra=extra)
    with pytest.raises(LoraclrError, match=rf"odd\.safetensors: the bundled embedding {told}.*take it out"):
        read_lora(tmp_path / "odd.safetensors")


def test_the_name_of_an_embedding_is_what_stands_before_the_next_dot() -> None:
    assert [embedding_name(f"bundle_emb.{rest}") for rest in ("sks.clip_l", "a b.string_to_param.*", "x")] == [
        "sks",
        "a b",
        "x",
    ]


# -- prompts


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


# -- merges


class Listener(Progress):
    """What a prompt that calls the embedding is encoded to, whenever a stage begins after the files were read."""

    def __init__(self, host: DiffusersHost) -> None:
        self._host, self.heard = host, []

    @torch.no_grad()
    def start(self, stage: Stage, total: int) -> None:
        if stage is not Stage.READING:  # which is how they become known
            self.heard.append(self._host.encode(["a glimmer"]).tensors["context"])


def test_a_merge_and_its_picture_know_the_embeddings_and_forget_them(
    demo: Path, host: DiffusersHost, tmp_path: Path
) -> None:
    tensors = load_file(demo / "loras" / "fox-face.safetensors")
    save_file({**tensors, **random_embedding(host, "glimmer", 2)}, tmp_path / "carrier.safetensors")
    carrier = concept(demo, "fox-face", lora=str(tmp_path / "carrier.safetensors"))
    asked = request(demo, "pizza", method="weighted_sum", options={})
    asked = replace(asked, concepts=(carrier, *asked.concepts))
    with torch.no_grad():
        plain = host.encode(["a glimmer"]).tensors["context"]
        with host.knowing(random_embedding(host, "glimmer", 2)):
            known = host.encode(["a glimmer"]).tensors["context"]
    assert not load_inputs([carrier], host)[0].warnings
    for work in (
        lambda heard: merge_loras(asked, host, heard),
        lambda heard: measure_loras(asked, host, None, heard),
    ):
        heard = Listener(host)
        work(heard)
        assert heard.heard
        assert all(torch.equal(context, known) for context in heard.heard)
        with torch.no_grad():
            assert torch.equal(host.encode(["a glimmer"]).tensors["context"], plain)


def _knows(host: DiffusersHost) -> bool:
    return any(encoder.vectors for encoder in host.text_encoders)


def _noise(texts: Sequence[str], size: tuple[int, int]) -> Tensor:
    return torch.zeros(len(texts), 4, size[0] // 8, size[1] // 8)


def test_in_the_picture_only_the_base_model_does_without_them(
    demo: Path, host: DiffusersHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors = load_file(demo / "loras" / "pizza.safetensors")
    save_file({**tensors, **random_embedding(host, "glimmer", 2)}, tmp_path / "carrier.safetensors")
    carrier = concept(demo, "pizza", lora=str(tmp_path / "carrier.safetensors"))
    asked = request(demo, "fox-face", method="weighted_sum", options={})
    merge = merge_loras(replace(asked, concepts=(*asked.concepts, carrier)), host)
    seen = []

    def sample(host: DiffusersHost, texts: Sequence[str], *_: object, size: tuple[int, int], **__: object) -> Tensor:
        seen.append(_knows(host))
        return _noise(texts, size)

    monkeypatch.setattr(preview, "sample", sample)
    preview_grid(merge, host, PreviewOptions(steps=2))
    assert seen == [False, *[True] * 6], "base | all tags, merged, two alone, two of both"
