"""Names of layers: kohya's on one side, module paths of diffusers and transformers on the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_loraclr.files.layer_keys import is_text_encoder, other_names, split_key, text_encoder_key, unet_key
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.hosts.diffusers import DiffusersHost

FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("lora_unet_conv_in.lora_up.weight", ("lora_unet_conv_in", "lora_up.weight")),
        ("lora_unet_conv_in.alpha", ("lora_unet_conv_in", "alpha")),
        (f"{FC1}.lora_down.weight", (FC1, "lora_down.weight")),
        ("lora_te1_x.hada_w1_a", ("lora_te1_x", "hada_w1_a")),
        ("lora_te2_x.dora_scale", ("lora_te2_x", "dora_scale")),
    ],
)
def test_a_key_of_kohyas_style_is_a_layer_and_a_parameter(key: str, parts: tuple[str, str]) -> None:
    assert split_key(key) == parts


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_conv_in",
        "lora_unet_conv_in.",
        "lora_unet_.alpha",
        "unet.alpha",
        "unet.down_blocks.0.lora_C.weight",
        "down_blocks_0.lora_A.weight",
        "lora_te3_x.alpha",
        "bundle_emb.x.clip_l",
        "model.diffusion_model.out.2.weight",
        "",
    ],
)
def test_a_key_of_another_style_is_no_layer(key: str) -> None:
    assert split_key(key) is None


ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model_encoder_layers_0"
#: of every style, what other programs write -> layer and parameter
STYLES = {
    # diffusers, since PEFT and before it
    f"unet.{DOTTED}.to_q.lora_A.weight": (f"lora_unet_{ATTENTION}_q", "lora_A.weight"),
    f"unet.{DOTTED}.to_out.0.lora_B.weight": (f"lora_unet_{ATTENTION}_out_0", "lora_B.weight"),
    f"unet.{DOTTED}.to_q.lora_magnitude_vector": (f"lora_unet_{ATTENTION}_q", "lora_magnitude_vector"),
    f"unet.{DOTTED}.to_v.lora.up.weight": (f"lora_unet_{ATTENTION}_v", "lora_up.weight"),
    f"unet.{DOTTED}.processor.to_q_lora.up.weight": (f"lora_unet_{ATTENTION}_q", "lora_up.weight"),
    f"unet.{DOTTED}.processor.to_out_lora.down.weight": (f"lora_unet_{ATTENTION}_out_0", "lora_down.weight"),
    f"{DOTTED}.processor.to_k_lora.up.weight": (f"lora_unet_{ATTENTION}_k", "lora_up.weight"),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": (f"lora_te1_{TEXT}_mlp_fc1", "lora_B.weight"),
    "text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight": (f"lora_te1_{TEXT}_mlp_fc1", "lora_B.weight"),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (
        f"lora_te1_{TEXT}_self_attn_q_proj",
        "lora_up.weight",
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight": (
        f"lora_te1_{TEXT}_self_attn_out_proj",
        "lora_down.weight",
    ),
    "text_encoder_2.text_projection.lora_A.weight": ("lora_te2_text_projection", "lora_A.weight"),
    # PEFT by itself
    f"base_model.model.{DOTTED}.to_k.lora_B.default.weight": (f"lora_unet_{ATTENTION}_k", "lora_B.weight"),
    "base_model.model.text_model.encoder.layers.0.mlp.fc2.lora_A.weight": (f"lora_te1_{TEXT}_mlp_fc2", "lora_A.weight"),
    # LyCORIS without a trainer around it, kohya's OFT
    f"lycoris_{ATTENTION}_q.hada_w1_a": (f"lora_unet_{ATTENTION}_q", "hada_w1_a"),
    f"lycoris_{TEXT}_mlp_fc1.lokr_w1": (f"lora_te1_{TEXT}_mlp_fc1", "lokr_w1"),
    "oft_unet_input_blocks_1_1_proj_in.oft_blocks": ("lora_unet_input_blocks_1_1_proj_in", "oft_blocks"),
    # compvis in kohya's files, OneTrainer's OMI and its own form
    "lora_unet_input_blocks_4_1_proj_in.alpha": ("lora_unet_input_blocks_4_1_proj_in", "alpha"),
    "unet.input_blocks.4.1.proj_in.dora_scale": ("lora_unet_input_blocks_4_1_proj_in", "dora_scale"),
    "clip_l.text_model.encoder.layers.0.mlp.fc1.alpha": (f"lora_te1_{TEXT}_mlp_fc1", "alpha"),
    "clip_g.text_model.encoder.layers.0.mlp.fc1.alpha": (f"lora_te2_{TEXT}_mlp_fc1", "alpha"),
    "lora_unet.down_blocks.0.resnets.0.conv1.lora_down.weight": (
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_down.weight",
    ),
    # ComfyUI's
    "diffusion_model.middle_block.1.proj_in.lora_up.weight": ("lora_unet_middle_block_1_proj_in", "lora_up.weight"),
    # the WebUI's own names, which it takes too
    "diffusion_model_middle_block_1_proj_in.diff": ("lora_unet_middle_block_1_proj_in", "diff"),
    f"transformer_{TEXT}_mlp_fc1.alpha": (f"lora_te_{TEXT}_mlp_fc1", "alpha"),
    f"0_transformer_{TEXT}_mlp_fc1.alpha": (f"lora_te1_{TEXT}_mlp_fc1", "alpha"),
    "1_model_transformer_resblocks_0_attn_q_proj.alpha": (f"lora_te2_{TEXT}_self_attn_q_proj", "alpha"),
    "model_transformer_resblocks_0_mlp_c_fc.alpha": (f"lora_te_{TEXT}_mlp_fc1", "alpha"),
}


@pytest.mark.parametrize(("key", "parts"), STYLES.items(), ids=STYLES)
def test_a_key_of_every_other_style_becomes_kohyas(key: str, parts: tuple[str, str]) -> None:
    assert split_key(key) == parts
    assert split_key(".".join(parts)) == parts


def test_a_model_tells_the_other_names_of_its_layers() -> None:
    keys = [f"lora_te_{TEXT}_mlp_fc1", "lora_unet_conv_in", "lora_unet_up_blocks_0_upsamplers_0_conv"]
    assert other_names(keys) == {
        f"lora_te1_{TEXT}_mlp_fc1": keys[0],
        "lora_unet_input_blocks_0_0": keys[1],
        "lora_unet_output_blocks_2_1_conv": keys[2],
    }
    compvis = ["lora_te1_x", "lora_te2_x", "lora_unet_input_blocks_0_0"]
    assert other_names(compvis) == {"lora_unet_conv_in": compvis[2]}


def test_only_text_encoders_layers_are_the_text_encoders() -> None:
    assert all(map(is_text_encoder, ("lora_te_x", "lora_te1_x", "lora_te2_x")))
    assert not any(map(is_text_encoder, ("lora_unet_x", "lora_te3_x", "x_lora_te_")))


def test_a_module_path_becomes_a_key_with_underscores() -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert unet_key(path) == "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"


def test_a_text_encoders_key_is_the_same_for_the_paths_of_transformers_4_and_5() -> None:
    assert text_encoder_key("text_model.encoder.layers.0.mlp.fc1") == FC1
    assert text_encoder_key("encoder.layers.0.mlp.fc1") == FC1
    assert text_encoder_key("encoder.layers.0.mlp.fc1", "lora_te2_").startswith("lora_te2_text_model_encoder")


def test_every_layer_of_a_trained_lora_is_a_layer_of_the_model_it_was_trained_on(
    demo: Path, host: DiffusersHost
) -> None:
    layers = read_lora(demo / "loras" / "pizza.safetensors").layers
    assert layers
    assert set(layers) <= set(host.layers())


def test_no_two_layers_of_a_model_share_a_key(host: DiffusersHost) -> None:
    """Underscores could make `a.b_c` and `a_b.c` one; the count would then fall short."""
    modules = [layer.module for layer in host.layers().values() if not layer.is_vector]
    every = [*host.text_encoders[0].model.modules(), *host.unet.modules()]
    assert len(modules) == sum(type(module).__name__.endswith(("Linear", "Conv2d")) for module in every)


@pytest.mark.parametrize(
    ("key", "layer", "parameter"),
    [
        ("base_model.model.conv_in.lora_A.weight", "lora_unet_conv_in", "lora_A.weight"),
        ("conv_out.lora_B.weight", "lora_unet_conv_out", "lora_B.weight"),
        ("base_model.model.conv_in.hada_w1_a", "lora_unet_conv_in", "hada_w1_a"),
        (
            "base_model.model.encoder.layers.0.self_attn.k_proj.lora_A.weight",
            "lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
            "lora_A.weight",
        ),
    ],
)
def test_pefts_adapters_of_one_model_name_what_is_inside_it(key: str, layer: str, parameter: str) -> None:
    assert split_key(key) == (layer, parameter)
