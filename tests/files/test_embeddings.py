"""Embeddings that LoRAs bundle: which forms are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.embeddings import embedding_name, embeddings_by_name
from lib_loraclr.files.lora_files import read_lora


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
