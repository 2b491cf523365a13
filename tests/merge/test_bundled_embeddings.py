"""Embeddings that LoRAs bundle, known to the prompts of a merge and of its picture, and to none after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.merging import measure_loras, merge_loras
from lib_loraclr.output import drawing
from lib_loraclr.output.preview import PreviewOptions, draw_pictures
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.recording.inputs import load_inputs
from tests.small import concept, measure_on_little, request
from tests.tiny_hosts import random_embedding


@pytest.fixture(autouse=True)
def measured_on_little(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)


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

    monkeypatch.setattr(drawing, "sample", sample)
    draw_pictures(merge, host, PreviewOptions(steps=2))
    assert seen == [False, *[True] * 7], "base | all tags, merged, two alone, other words, two of both"
