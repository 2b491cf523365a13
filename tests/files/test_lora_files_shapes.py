"""LoRA files whose tensors are of shapes that no kind of network has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import read_lora


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("alpha", (2,), "one number"),
        ("on_input", (2,), "one number"),
        ("lora_up.weight", (), "a matrix"),
        ("lora_down.weight", (0, 4), "a matrix"),
        ("hada_w1_b", (0, 4), "a matrix"),
        ("b1.weight", (4,), "a matrix"),
        ("w_norm", (0,), "numbers"),
    ],
)
def test_shapes_that_no_kind_of_network_has_are_named(tmp_path: Path, name: str, shape: tuple, wanted: str) -> None:
    save_file({f"lora_unet_conv_in.{name}": torch.zeros(shape)}, tmp_path / "a.safetensors")
    said = rf"lora_unet_conv_in.{name} with shape {re.escape(str(list(shape)))}, and {wanted} should stand there"
    with pytest.raises(LoraclrError, match=said):
        read_lora(tmp_path / "a.safetensors")


def test_a_file_of_embeddings_alone_is_told_by_its_keys(tmp_path: Path) -> None:
    save_file({"bundle_emb.sks.string_to_param.*": torch.zeros(1, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraclrError, match=r"holds no LoRA layer \(its keys: bundle_emb.sks"):
        read_lora(tmp_path / "a.safetensors")
