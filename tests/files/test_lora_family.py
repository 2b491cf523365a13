"""The family of a LoRA file, from its tensors in every kind and key style."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.layer_keys import split_key
from lib_loraclr.files.lora_family import family_by_header, family_of
from lib_loraclr.files.lora_files import LoraFile

Q_PROJ = "text_model_encoder_layers_0_self_attn_q_proj"
BLOCK = "transformer_blocks_0_attn2_to_k"


def parameters(kind: str, d_out: int, d_in: int) -> dict[str, Tensor]:
    return {
        "LoRA": {"lora_up.weight": (d_out, 4), "lora_down.weight": (4, d_in)},
        "PEFT": {"lora_B.weight": (d_out, 4), "lora_A.weight": (4, d_in)},
        "LoHa": {"hada_w1_a": (d_out, 4), "hada_w1_b": (4, d_in), "hada_w2_a": (d_out, 4), "hada_w2_b": (4, d_in)},
        "LoKr": {"lokr_w1": (4, 8), "lokr_w2_a": (d_out // 4, 2), "lokr_w2_b": (2, d_in // 8)},
        "GLoRA": {"a1.weight": (4, d_in), "a2.weight": (d_in, 4), "b1.weight": (4, d_in), "b2.weight": (d_out, 4)},
        "full": {"diff": (d_out, d_in)},
        "(IA)3 out": {"weight": (d_out,)},
        "OFT": {"oft_blocks": (4, d_out // 4, d_out // 4)},
    }[kind]


def tensors(kind: str, d_out: int, d_in: int) -> dict[str, Tensor]:
    made = {name: torch.zeros(shape) for name, shape in parameters(kind, d_out, d_in).items()}
    extra = {"GLoRA": {"alpha": torch.tensor(1.0)}, "(IA)3 out": {"on_input": torch.tensor(0)}}
    return made | extra.get(kind, {})


def family(layers: dict[str, dict[str, Tensor]], **metadata: str) -> str | None:
    return family_of(LoraFile(Path("a.safetensors"), metadata, layers))


@pytest.mark.parametrize("kind", ["LoRA", "PEFT", "LoHa", "LoKr", "GLoRA", "full"])
@pytest.mark.parametrize(("width", "name"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL"), (1280, "SDXL refiner")])
def test_what_cross_attention_reads_tells_the_family(kind: str, width: int, name: str) -> None:
    for style in (
        f"lora_unet_down_blocks_1_attentions_0_{BLOCK}.x",
        f"lora_unet_input_blocks_4_1_{BLOCK}.x",
        f"unet.down_blocks.1.attentions.0.{BLOCK.replace('_attn2_', '.attn2.').replace('s_0', 's.0')}.alpha",
        f"lycoris_down_blocks_1_attentions_0_{BLOCK}.x",
    ):
        layer, _ = split_key(style)
        assert family({layer: tensors(kind, 640, width)}) == name
        assert family({layer: tensors(kind, 640, 96)}) is None


@pytest.mark.parametrize("kind", ["LoRA", "(IA)3 out", "OFT"])
def test_the_text_encoders_tell_where_the_unet_does_not(kind: str) -> None:
    te, te1, te2 = (f"lora_{name}_{Q_PROJ}" for name in ("te", "te1", "te2"))
    assert family({te: tensors(kind, 768, 768)}) == "SD1"
    assert family({te: tensors(kind, 1024, 1024)}) == "SD2"
    assert family({te2: tensors(kind, 1280, 1280)}) == "SDXL"
    assert family({te1: tensors(kind, 768, 768), te2: tensors(kind, 1280, 1280)}) == "SDXL"
    assert family({te1: tensors(kind, 768, 768)}) is None, "SD1's and SDXL's first are alike"
    outermost = "lora_unet_down_blocks_0_attentions_0_proj_in"
    assert family({te1: tensors(kind, 768, 768), outermost: tensors(kind, 320, 320)}) == "SD1"


@pytest.mark.parametrize("key", ["lora_unet_input_blocks_7_1_", "lora_unet_down_blocks_2_attentions_0_"])
@pytest.mark.parametrize("kind", ["(IA)3 out", "OFT"])
def test_several_transformer_blocks_are_sdxls(key: str, kind: str) -> None:
    assert family({f"{key}transformer_blocks_9_attn1_to_v": tensors(kind, 1280, 1280)}) == "SDXL"
    assert family({f"{key}transformer_blocks_0_attn1_to_v": tensors(kind, 1280, 1280)}) is None


FOREIGN = {
    "lora_unet_double_blocks_0_img_attn_proj.x": "Flux",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "Flux",
    "lora_unet_joint_blocks_0_x_block_attn_proj.x": "SD3",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "SD3 or Flux",
}


@pytest.mark.parametrize(("key", "name"), FOREIGN.items(), ids=FOREIGN)
def test_families_that_cannot_be_merged_are_told_by_name(key: str, name: str) -> None:
    assert family({split_key(key)[0]: tensors("LoRA", 64, 64)}) == name


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "SD2"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_v2": "True"}, "SD2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({}, None),
    ],
)
def test_metadata_tell_only_where_tensors_do_not(metadata: dict[str, str], name: str | None) -> None:
    assert family({"lora_unet_conv_in": tensors("LoRA", 64, 36)}, **metadata) == name
    assert family({f"lora_unet_mid_block_attentions_0_{BLOCK}": tensors("LoRA", 64, 768)}, **metadata) == "SD1"


@pytest.mark.parametrize(
    "style",
    [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.{}",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.{}",
    ],
)
def test_a_header_tells_what_the_tensors_tell(tmp_path: Path, style: str) -> None:
    """In files whose cross-attention tells, and in those where only the rest does."""
    unet = {style.format(f"lora_{side}.weight"): shape for side, shape in (("up", (640, 2)), ("down", (2, 2048)))}
    text = {f"lora_te_{Q_PROJ}.lora_{side}.weight": shape for side, shape in (("up", (1024, 2)), ("down", (2, 1024)))}
    for number, (shapes, told) in enumerate([(unet, "SDXL"), (text, "SD2"), ({}, None)]):
        path = tmp_path / f"{number}.safetensors"
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()} | {"odd": torch.zeros(1)}, path)
        assert family_by_header(path) == told


def test_a_header_alone_is_enough_for_a_file_that_scales_what_enters(tmp_path: Path) -> None:
    """Which side is scaled is a number in the file, and no part of its header."""
    context = f"lora_unet_mid_block_attentions_0_{BLOCK}"
    save_file(
        {f"{context}.weight": torch.ones(768), f"{context}.on_input": torch.tensor(1)}, tmp_path / "a.safetensors"
    )
    assert family_by_header(tmp_path / "a.safetensors") is None


def test_a_damaged_file_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(LoraclrError, match="damaged or incomplete"):
        family_by_header(tmp_path / "a.safetensors")
