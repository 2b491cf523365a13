"""Tensors that no trainer writes: a file with them is refused by its name, or does what its numbers say."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.deltas import layer_delta
from lib_loraclr.files.lora_files import read_lora

KEY, SHAPE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", (16, 8)
WEIGHT = torch.zeros(SHAPE)


def lora(rank: int = 2, alpha: float = 2.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        f"{KEY}.lora_up.weight": torch.ones(SHAPE[0], rank, dtype=dtype),
        f"{KEY}.lora_down.weight": torch.ones(rank, SHAPE[1], dtype=dtype),
        f"{KEY}.alpha": torch.tensor(alpha),
    }


def delta(path: Path, tensors: dict[str, Tensor]) -> Tensor:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    parameters = read_lora(path).layers[KEY]
    return layer_delta(KEY, parameters, path.stem, WEIGHT).factors.dense()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lora(rank=0), r"lora_(up|down)\.weight with shape .*0.* numbers|a matrix should stand there"),
        (lora(alpha=float("nan")), r"NaN or infinity in .*\.alpha"),
        (lora(alpha=float("inf")), r"NaN or infinity in .*\.alpha"),
        (lora() | {f"{KEY}.alpha": torch.ones(2)}, r"alpha with shape \[2\], and one number should stand there"),
        (lora() | {f"{KEY}.lora_up.weight": torch.full((16, 2), float("-inf"))}, r"NaN or infinity in .*lora_up"),
        (lora() | {f"{KEY}.lora_up.weight": torch.ones(2)}, "a matrix should stand there"),
        (lora() | {f"{KEY}.lora_up.weight": torch.ones(16, 3)}, None),
        # one of another width than the layer's is refused where it is held against the model (recording/inputs.py)
        ({f"{KEY}.lora_up.weight": torch.ones(16, 2)}, None),
        ({f"{KEY}.alpha": torch.tensor(1.0)}, None),
    ],
    ids=["rank 0", "alpha NaN", "alpha inf", "two alphas", "-inf", "a vector", "other ranks"]
    + ["half of it", "alpha alone"],
)
def test_what_is_no_delta_is_refused_with_the_files_name(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(LoraclrError, match=said or ".") as refused:
        delta(tmp_path / "hostile.safetensors", tensors)
    assert "hostile" in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_zero_alpha_and_numbers_next_to_zero_are_what_they_say(tmp_path: Path, dtype: torch.dtype) -> None:
    assert float(delta(tmp_path / "zero.safetensors", lora(alpha=0.0, dtype=dtype)).abs().max()) == 0
    tiny = torch.finfo(dtype).tiny / 4  # a denormal
    tensors = lora(dtype=dtype)
    tensors[f"{KEY}.lora_up.weight"].fill_(tiny)
    found = delta(tmp_path / "tiny.safetensors", tensors)
    assert found.isfinite().all() and float(found.abs().max()) <= 1e-4


def test_a_rank_beyond_the_layers_is_the_product_it_stands_for(tmp_path: Path) -> None:
    tensors = lora(rank=3000, alpha=3000.0)
    found = delta(tmp_path / "huge.safetensors", tensors)
    torch.testing.assert_close(found, torch.full(SHAPE, 3000.0), rtol=1e-4, atol=0)


def test_ten_thousand_keys_are_read_and_none_is_lost(tmp_path: Path) -> None:
    layers = [f"lora_unet_{i}_{j}" for i, j in itertools.product(range(50), range(66))]
    tensors = {f"{key}.{name}": torch.ones(1, 1) for key in layers for name in ("lora_up.weight", "lora_down.weight")}
    tensors |= {f"{key}.alpha": torch.tensor(1.0) for key in layers} | {f"what.{i}": torch.ones(1) for i in range(100)}
    save_file(tensors, tmp_path / "many.safetensors")
    file = read_lora(tmp_path / "many.safetensors")
    assert len(tensors) == 10_000 and len(file.layers) == 3300 and len(file.unknown) == 100
