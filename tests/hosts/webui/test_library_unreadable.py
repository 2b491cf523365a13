"""The list of installed LoRAs where some of them are damaged, or of a family that cannot be merged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from webui_stand_in import StandIn

from lib_loraclr.hosts import running

#: a file without tensors
EMPTY = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture
def lora_file(webui: StandIn) -> Callable[..., Path]:
    def write(name: str, metadata: dict | None = None) -> Path:
        path = running.lora_dir() / f"{name}.safetensors"
        path.write_bytes(EMPTY)
        webui.networks.metadata[name] = metadata or {}
        webui.networks.list_available_networks()
        return path

    return write


def test_a_file_that_cannot_be_read_is_one_marked_row_and_the_others_are_listed(lora_file: Callable[..., Path]):
    def with_header(text: str) -> bytes:
        return len(text).to_bytes(8, "little") + text.encode() + bytes(16)

    shape = '{{"a":{{"dtype":"F32","shape":{},"data_offsets":[0,16]}}}}'
    damaged = {
        "negative": (with_header(shape.format("[-1, 4]")), r"shape \[-1, 4\]"),
        "huge": (with_header(shape.format(f"[{2**70}]")), "does not take as many"),
        "text": (with_header(shape.format('["a"]')), r"shape \['a'\]"),
        "nested": (with_header('{"a":' + "[" * 200_000), "nested without end"),
        "page": (b"<!DOCTYPE html>", "is a web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "nothing": (b"", "is empty"),
    }
    for name, (content, _) in damaged.items():
        lora_file(name).write_bytes(content)
    lora_file("whole", {"modelspec.trigger_phrase": "sks"})
    listed = {lora.name: lora for lora in running.installed_loras()}
    assert listed.keys() == {*damaged, "whole"}
    for name, (_, said) in damaged.items():
        reason = listed[name].obstacle("SD1")
        assert re.search(said, reason) and str(listed[name].path) not in reason, "the row has its name already"
        assert (listed[name].trigger, listed[name].trigger_is_guess) == (name, True)
    assert (listed["whole"].problem, listed["whole"].obstacle("SD1"), listed["whole"].trigger) == ("", None, "sks")


def test_a_file_of_another_family_is_marked_by_what_it_is(lora_file: Callable[..., Path]):
    clip = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    for name, module, metadata in (
        ("keys", "lora_transformer_single_transformer_blocks_0_attn_to_q", None),
        ("metadata", clip, {"modelspec.architecture": "Flux.1-dev/lora"}),
        ("control", clip, None),
    ):
        path = lora_file(name, metadata)
        save_file({f"{key}.diff": torch.ones(2, 2) for key in (clip, module)}, path, metadata)
    loras = {lora.name: lora.obstacle("SD1") for lora in running.installed_loras()}
    assert loras["keys"] == loras["metadata"] == "made for Flux, the loaded checkpoint is SD1"
    assert loras["control"] is None


@pytest.mark.parametrize("card", ['{"sd version": ["SD1"]}', "[" * 100_000, "5"], ids=["a list", "nested", "a number"])
def test_a_card_of_any_form_leaves_the_lora_listed(lora_file: Callable[..., Path], card: str):
    lora_file("a").with_suffix(".json").write_text(card)
    [found] = running.installed_loras()
    assert (found.family, found.trigger, found.trigger_is_guess) == ("Unknown", "a", True)


def test_a_file_that_may_not_be_read_is_asked_again(lora_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    path = lora_file("a")
    opened = Path.open

    def refuse(self: Path, *arguments: object, **named: object):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert "Permission denied" in running.installed_loras()[0].obstacle("SD1")
    assert running.installed_loras()[0].obstacle("SD1") is None, "it was not remembered"


def test_text_that_is_none_does_not_end_the_answer_to_a_browser(lora_file: Callable[..., Path]):
    lora_file("a", {"modelspec.trigger_phrase": "x\ud800", "modelspec.license": "\udfff"})
    [found] = running.installed_loras()
    assert (found.trigger, found.licence) == ("x?", "?")
    json.dumps({"trigger": found.trigger}, ensure_ascii=False).encode()
