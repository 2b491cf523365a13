"""What a merge asks of the model: the phrases of the bank, of a person, and of the LoRAs' captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_loraclr.merge import stages as module
from lib_loraclr.merge.stages import Stages
from lib_loraclr.model.host import Host
from lib_loraclr.progress import Progress
from lib_loraclr.recording.asking import phrases_of
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.teachers import Slot
from lib_loraclr.request.merge_request import Concept
from lib_loraclr.request.phrases import Part
from lib_loraclr.request.prompts import PromptOptions
from tests.small import request


@pytest.fixture
def stages(demo: Path, host: Host, write_lora: Callable[..., Path], tmp_path: Path) -> Callable[..., Stages]:
    """A merge of two that were trained with captions."""
    captions = ({"sks owl": 9, "feathers": 3}, {"sks owl in rain": 2, "mud": 3, "hut, zwx": 1})
    paths = [
        write_lora(tmp_path / f"{k}.safetensors", metadata={"ss_tag_frequency": json.dumps({"1_x": tags})})
        for k, tags in enumerate(captions)
    ]
    concepts = tuple(Concept(str(path), trigger=words) for path, words in zip(paths, ("sks owl", "zwx"), strict=True))

    def make(**prompts: object) -> Stages:
        asked = replace(request(demo, "fox-face"), concepts=concepts, prompts=PromptOptions(**prompts))
        return Stages(asked, load_inputs(concepts, host, Progress()), host, None, Progress())

    return make


def asked(stages: Stages, part: Part, count: int = 2000) -> list[str]:
    phrases = phrases_of(stages.request, stages.inputs, part)
    return [phrases.draw().asking("X") for _ in range(count)]


def test_captions_and_a_persons_phrases_are_asked_but_none_that_calls_a_concept(stages: Callable[..., Stages]) -> None:
    drawn = {text for part in Part for text in asked(stages(phrases=("in a red dress", "sks owl costume")), part)}
    for words in ("feathers", "mud", "in a red dress"):
        assert any(words in text for text in drawn), words
    assert not any("sks owl" in text or "zwx" in text for text in drawn)


def test_without_a_bank_only_what_a_person_wrote_is_asked(stages: Callable[..., Stages]) -> None:
    own = {"templates": ("a {trigger}", "one {trigger}"), "bank": "none"}
    for part in Part:
        assert set(asked(stages(**own), part, 50)) == {"a X", "one X"}
        more = set(asked(stages(**own, phrases=("the {trigger} itself", "at dawn")), part, 200))
        assert {"a X", "one X", "the X itself"} <= more
        assert more <= {f"{form}{end}" for form in ("a X", "one X", "the X itself") for end in ("", ", at dawn")}


def test_the_text_encoder_is_asked_in_every_form_and_not_by_the_alphabet(
    stages: Callable[..., Stages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many prompts as there is room for, of those that begin with the trigger as of those that begin with "a photo"."""
    monkeypatch.setattr(module, "RECORDED_PROMPTS", 40)
    merge = stages(negative="ugly")
    teacher = merge.teachers[1]
    phrases = phrases_of(merge.request, merge.inputs, Part.LEARN)
    slots = tuple(Slot(k, Part.LEARN, phrases.draw(), {}) for k in range(60))
    prompts = tuple(teacher.prompt(slot) for slot in slots)
    nothing = torch.zeros(60, 1, 1, 1)
    flags = torch.zeros(60, dtype=torch.bool)
    own = Examples(teacher, slots, prompts, nothing, torch.zeros(60), nothing, torch.zeros(60), None, flags)
    (run,) = merge._text_encoder_runs([own])
    heard: list[str] = []
    monkeypatch.setattr(merge.host, "encode", heard.extend)
    run.evaluate(slice(0, run.samples), nullcontext)
    assert run.samples == len(heard) == 40 == len(set(heard)) and heard[-1] == "ugly"
    called = [prompt for prompt in heard if prompt.startswith(("zwx", "a zwx"))]
    everything = [prompt for prompt in set(prompts) if prompt.startswith(("zwx", "a zwx"))]
    assert len(called) / 40 > 0.5 * len(everything) / len(set(prompts)) > 0
