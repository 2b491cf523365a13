"""Families that cannot be merged: told by modules and metadata, and refused by what they are, in every door alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.foreign_families import foreign_family
from lib_loraclr.files.lora_family import family_by_header, family_of
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.merge_request import Concept

CLIP = "lora_te1_text_model_encoder_layers_{}_self_attn_q_proj"
#: a module of each family in the styles of several trainers -> what it is called
MODULES = {
    "lora_unet_double_blocks_0_img_attn_proj": "Flux",
    "transformer.single_transformer_blocks.0.attn.to_q": "Flux",
    "lora_transformer_single_transformer_blocks_0_attn_to_q": "Flux",
    "diffusion_model.single_blocks.3.linear1": "Flux",
    "base_model.model.single_transformer_blocks.0.attn.to_q": "Flux",
    "lora_unet_joint_blocks_0_x_block_attn_proj": "SD3",
    "diffusion_model.joint_blocks.0.context_block.attn.qkv": "SD3",
    "transformer.transformer_blocks.0.attn.to_q": "SD3 or Flux",
    "lora_transformer_transformer_blocks_0_attn_to_q": "SD3 or Flux",
    "transformer.transformer_blocks.0.img_mlp.net.2": "Qwen-Image",
    "transformer_blocks.0.txt_mod.1": "Qwen-Image",
    "lora_unet_transformer_blocks_0_img_mod_1": "Qwen-Image",
    "transformer.transformer_blocks.0.attn1.to_q": "PixArt, LTX-Video or another diffusion transformer",
    "lora_transformer_transformer_blocks_0_attn2_to_k": "PixArt, LTX-Video or another diffusion transformer",
    "diffusion_model.transformer_blocks.5.ff.net.2": "PixArt, LTX-Video or another diffusion transformer",
    "transformer.adaln_single.linear": "PixArt",
    "diffusion_model.blocks.0.self_attn.q": "Wan",
    "lora_unet_blocks_0_cross_attn_k": "Wan",
    "lora_unet_blocks_0_attn1_Wqkv": "HunyuanDiT",
    "diffusion_model.layers.0.attention.qkv": "Lumina, Z-Image or another diffusion transformer",
    "lora_prior_unet_down_blocks_0_2_attention_attn_out_proj": "Stable Cascade",
    "unet.down_blocks.0.motion_modules.0.temporal_transformer.x": "AnimateDiff",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "T5",
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q": "T5",
}
#: modules that are Stable Diffusion's, and begin alike
OWN = [
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    "lora_unet_input_blocks_4_1_transformer_blocks_9_ff_net_2",
    "lycoris_mid_block_attentions_0_proj_in",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
    "clip_g.text_model.encoder.layers.0.mlp.fc1",
    "lora_te2_text_projection",
    "1_model_transformer_resblocks_0_attn_q_proj",
    "transformer_text_model_encoder_layers_0_mlp_fc1",
    "base_model.model.encoder.layers.0.self_attn.k_proj",
    "base_model.model.down_blocks.0.attentions.0.proj_in",
    "time_embedding.linear_1",
]


@pytest.mark.parametrize(("module", "name"), MODULES.items(), ids=MODULES)
def test_a_module_tells_a_family_in_every_style(module: str, name: str) -> None:
    told = foreign_family([f"{module}.lora_up.weight"], {})
    assert told is not None and (told == name or name == "T5" and name in told)


@pytest.mark.parametrize("module", OWN)
def test_stable_diffusions_own_modules_tell_of_no_other(module: str) -> None:
    """The control of the test above."""
    assert foreign_family([f"{module}.lora_up.weight"], {}) is None


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"modelspec.architecture": "Flux.1-dev/lora"}, "Flux"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
        ({"ss_base_model_version": "flux1"}, "Flux"),
        ({"ss_base_model_version": "sd3m"}, "SD3"),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "SD3"),
        ({"modelspec.architecture": "stable-diffusion-v3.5/lora"}, "SD3"),
        ({"ss_base_model_version": "qwen_image"}, "Qwen-Image"),
        ({"modelspec.architecture": "pixart-alpha/lora"}, "PixArt"),
        ({"ss_base_model_version": "wan2.1"}, "Wan"),
        ({"modelspec.architecture": "hunyuan-video"}, "HunyuanVideo or HunyuanDiT"),
        (
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "ss_base_model_version": "sdxl_base_v1-0"},
            None,
        ),
        ({"ss_base_model_version": "sd_v2_768_v"}, None),
        ({"ss_base_model_version": "sd_v1", "ss_output_name": "flux-style"}, None),
        ({"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.title": "wan"}, None),
    ],
)
def test_metadata_name_a_family_whatever_the_keys(metadata: dict[str, str], name: str | None) -> None:
    assert foreign_family([CLIP.format(0)], metadata) == name


def write(path: Path, modules: list[str], metadata: dict[str, str] | None = None, width: int = 128) -> Path:
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_up.weight"] = torch.ones(width, 1)
        tensors[f"{module}.lora_down.weight"] = torch.ones(1, width)
    save_file(tensors, path, metadata)
    return path


def test_a_flux_file_with_clip_layers_is_refused_by_merge_check_and_picker_alike(
    tmp_path: Path, host: DiffusersHost
) -> None:
    """Its text layers fit Stable Diffusion 1, and most of its keys nobody else has."""
    clip = [CLIP.format(layer) for layer in range(2)]
    blocks = [f"lora_transformer_single_transformer_blocks_{i}_attn_to_q" for i in range(3)]
    files = {
        "keys": write(tmp_path / "keys.safetensors", clip + blocks),
        "metadata": write(tmp_path / "metadata.safetensors", clip, {"modelspec.architecture": "Flux.1-dev/lora"}),
        "few": write(tmp_path / "few.safetensors", clip + blocks[:1]),
    }
    for path in files.values():
        assert family_by_header(path) == family_of(read_lora(path)) == "Flux"
        for shapes_only in (False, True):
            with pytest.raises(LoraclrError, match=f"{path.name} does not fit .*SD1.*LoRA for Flux.*: leave it out"):
                load_input(Concept(str(path)), host, shapes_only=shapes_only)
    control = write(tmp_path / "control.safetensors", clip)
    assert family_by_header(control) is None and len(load_input(Concept(str(control)), host).deltas) == 2


def test_what_reads_sd1s_text_is_sd1s_whatever_the_metadata_say(tmp_path: Path) -> None:
    context = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path = write(tmp_path / "a.safetensors", [context], {"modelspec.architecture": "flux"}, width=768)
    assert family_by_header(path) == family_of(read_lora(path)) == "SD1"


def test_metadata_are_asked_before_a_merge(tmp_path: Path, host: DiffusersHost) -> None:
    """The first text encoder of XL is that of SD1, and no tensor tells which is meant."""
    for said in (
        {"ss_base_model_version": "sdxl_base_v1-0"},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
    ):
        path = write(tmp_path / "te.safetensors", [CLIP.format(0)], said)
        with pytest.raises(LoraclrError, match="does not fit .*LoRA for SDXL: load such a checkpoint"):
            load_input(Concept(str(path)), host)
    path = write(tmp_path / "te.safetensors", [CLIP.format(0)], {"ss_base_model_version": "sd_v1"})
    assert load_input(Concept(str(path)), host).deltas


@pytest.mark.parametrize(("unknown", "merged"), [(2, True), (3, False)])
def test_a_file_of_which_most_is_unknown_is_not_merged(
    tmp_path: Path, host: DiffusersHost, write_lora: Callable[..., Path], unknown: int, merged: bool
) -> None:
    """Of three keys that are understood as many others are borne, and no more."""
    extra = {f"model.something.{i}.weight": torch.ones(2) for i in range(unknown + 1)}
    path = write_lora(tmp_path / "odd.safetensors", {"lora_unet_conv_in": (64, 4, 3, 3)}, extra=extra)
    if merged:
        assert set(load_input(Concept(str(path)), host).left_out) == set(extra)
    else:
        with pytest.raises(LoraclrError, match=r"4 of its 7 keys have no place in the model \(model\.something\.0"):
            load_input(Concept(str(path)), host)


def test_a_file_without_a_single_layer_of_ours_is_refused_by_its_family_too(tmp_path: Path) -> None:
    path = write(tmp_path / "qwen.safetensors", ["transformer_blocks.0.txt_mod.1"])
    with pytest.raises(
        LoraclrError, match=r"qwen\.safetensors looks like a LoRA for Qwen-Image, which cannot be merged"
    ):
        read_lora(path)
    with pytest.raises(LoraclrError, match="holds no LoRA layer .*is it a LoRA for Stable Diffusion"):
        read_lora(write(tmp_path / "odd.safetensors", ["something.else"]))
