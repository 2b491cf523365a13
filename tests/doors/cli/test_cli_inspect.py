"""What `inspect` tells of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import Run, WriteLora

from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.output.merged import Merge


def test_inspect_shows_what_a_trained_lora_is(run: Run, demo: Path) -> None:
    path = demo / "loras" / "guitar.safetensors"
    result = run("inspect", str(path))
    assert (result.code, result.err) == (0, "")
    name, *lines = result.out.splitlines()
    assert name == str(path)
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert facts == {
        "family": "SD1",
        "kind": "LoRA",
        "rank": "4",
        "alpha": "2.0",
        "layers": "216 (24 text encoder, 192 UNet)",
        "size": "0.6 MB",
        "trigger": "gkh instrument",
        "base": "emoji-sd1.safetensors",
        "licence": "MIT",
        "hash": read_lora(path).hash,
    }


def test_inspect_says_what_is_not_known_instead_of_guessing(run: Run, folder: Path) -> None:
    out = run("inspect", "mute.safetensors").out
    for line in (
        "family    unknown",
        "trigger   none named; a guess: mute (its file name)",
        "base      not named",
        "licence   not named",
    ):
        assert line.split() in [printed.split() for printed in out.splitlines()]


def test_inspect_tells_ranks_kinds_embeddings_and_unknown_keys_apart(
    run: Run, folder: Path, write_lora: WriteLora
) -> None:
    extra = {
        "lora_unet_small.lora_up.weight": torch.ones(4, 1),
        "lora_unet_small.lora_down.weight": torch.ones(1, 4),
        **{f"lora_unet_hada.hada_{name}": torch.ones(3, 3) for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
        "lora_unet_hada.alpha": torch.tensor(1.5),
        "lora_unet_hada.dora_scale": torch.ones(1, 3),
        "lora_unet_hada.scalar": torch.ones(1),
        "bundle_emb.sks.clip_l": torch.ones(1, 2),
        "x.y": torch.ones(1),
    }
    write_lora(folder / "mixed.safetensors", {"lora_unet_conv_in": (64, 4, 3, 3)}, extra=extra)
    out = run("inspect", "mixed.safetensors").out
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert "LoHa with DoRA (1 " in facts["kind"]
    assert "LoRA (2 " in facts["kind"]
    assert "1 (1 " in facts["rank"]
    assert "2 (1 " in facts["rank"]
    assert "3 (1 " in facts["rank"] and "1.5 (1 " in facts["alpha"]
    assert "2 keys" in out and "lora_unet_hada.scalar" in out
    assert facts["embeddings"] == "sks"
    assert "x.y" in out


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1": (8, 4)}, "SDXL"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 768)}, "SD1"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 1024)}, "SD2"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (8, 2048)}, "SDXL"),
    ],
)
def test_inspect_tells_the_family_by_the_layers(
    run: Run, folder: Path, write_lora: WriteLora, layers: dict[str, tuple[int, ...]], family: str
) -> None:
    write_lora(folder / "x.safetensors", layers)
    assert f"family    {family}".split() in [line.split() for line in run("inspect", "x.safetensors").out.splitlines()]


def test_inspect_shows_several_files_one_after_the_other(run: Run, folder: Path) -> None:
    out = run("inspect", "fox.safetensors", "cat.safetensors").out
    assert out.index("fox.safetensors") < out.index("sks animal") < out.index("\n\ncat.safetensors")


def test_inspect_shows_what_a_merged_file_was_made_from(run: Run, recipe: tuple[Merge, Path]) -> None:
    assert "fox, mono" in run("inspect", str(recipe[1])).out
