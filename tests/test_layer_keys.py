"""Names of layers: kohya's on one side, module paths of diffusers and transformers on the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.layer_keys import is_text_encoder, split_key, text_encoder_key, unet_key
from lib_loraclr.lora_files import read_lora

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
        "unet.down_blocks.0.lora_A.weight",
        "lora_te3_x.alpha",
        "bundle_emb.x.clip_l",
        "model.diffusion_model.out.2.weight",
        "",
    ],
)
def test_a_key_of_another_style_is_no_layer(key: str) -> None:
    assert split_key(key) is None


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
    modules = [layer.module for layer in host.layers().values()]
    every = [*host.text_encoder.modules(), *host.unet.modules()]
    assert len(modules) == sum(type(module).__name__.endswith(("Linear", "Conv2d")) for module in every)
