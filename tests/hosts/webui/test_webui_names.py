"""The WebUI's names of layers in kohya's key style."""

from __future__ import annotations

import pytest

from lib_loraclr.hosts.webui.names import names_of
from lib_loraclr.model.families import REFINER, SD1, SD2, SDXL, Family


@pytest.mark.parametrize(
    ("family", "name", "key", "other"),
    [
        (SD1, "diffusion_model_input_blocks_0_0", "conv_in", "input_blocks_0_0"),
        (SD1, "diffusion_model_time_embed_2", "time_embedding_linear_2", "time_embed_2"),
        (SD1, "diffusion_model_input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv", "input_blocks_3_0_op"),
        (
            SD1,
            "diffusion_model_input_blocks_4_0_in_layers_2",
            "down_blocks_1_resnets_0_conv1",
            "input_blocks_4_0_in_layers_2",
        ),
        (
            SD1,
            "diffusion_model_input_blocks_8_1_proj_in",
            "down_blocks_2_attentions_1_proj_in",
            "input_blocks_8_1_proj_in",
        ),
        (SD1, "diffusion_model_middle_block_1_proj_out", "mid_block_attentions_0_proj_out", "middle_block_1_proj_out"),
        (
            SD1,
            "diffusion_model_middle_block_2_emb_layers_1",
            "mid_block_resnets_1_time_emb_proj",
            "middle_block_2_emb_layers_1",
        ),
        (SD1, "diffusion_model_output_blocks_2_1_conv", "up_blocks_0_upsamplers_0_conv", "output_blocks_2_1_conv"),
        (SD1, "diffusion_model_output_blocks_5_2_conv", "up_blocks_1_upsamplers_0_conv", "output_blocks_5_2_conv"),
        (SD1, "diffusion_model_output_blocks_11_0_skip_connection", "up_blocks_3_resnets_2_conv_shortcut", None),
        (
            SDXL,
            "diffusion_model_input_blocks_4_1_proj_in",
            "input_blocks_4_1_proj_in",
            "down_blocks_1_attentions_0_proj_in",
        ),
        (SDXL, "diffusion_model_output_blocks_2_2_conv", "output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
        (SDXL, "diffusion_model_label_emb_0_2", "label_emb_0_2", "add_embedding_linear_2"),
    ],
)
def test_unet_layers_are_named_as_kohya_names_them(family: Family, name: str, key: str, other: str | None):
    found = names_of(name, family, lambda converted, _: name)
    assert found.key == f"lora_unet_{key}"
    assert other is None or found.others == (f"lora_unet_{other}",)


@pytest.mark.parametrize(
    ("family", "name", "key"),
    [
        (SD1, "transformer_text_model_encoder_layers_3_mlp_fc1", "lora_te_text_model_encoder_layers_3_mlp_fc1"),
        (SD2, "model_transformer_resblocks_3_mlp_c_fc", "lora_te_text_model_encoder_layers_3_mlp_fc1"),
        (SD2, "model_transformer_resblocks_3_attn_q_proj", "lora_te_text_model_encoder_layers_3_self_attn_q_proj"),
        (SDXL, "0_transformer_text_model_encoder_layers_3_mlp_fc2", "lora_te1_text_model_encoder_layers_3_mlp_fc2"),
        (SDXL, "1_model_transformer_resblocks_31_mlp_c_proj", "lora_te2_text_model_encoder_layers_31_mlp_fc2"),
        (
            SDXL,
            "1_model_transformer_resblocks_31_attn_out_proj",
            "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
        ),
    ],
)
def test_text_encoder_layers_are_named_as_kohya_names_them(family: Family, name: str, key: str):
    found = names_of(name, family, lambda converted, _: converted)
    assert found.key == key
    # several programs number the only text encoder as the first of two
    assert found.others == ((key.replace("lora_te_", "lora_te1_"),) if family in (SD1, SD2) else ())


def test_a_key_that_the_webui_would_lead_elsewhere_is_not_written():
    name = "diffusion_model_input_blocks_4_1_proj_in"
    assert names_of(name, SD1, lambda key, _: "somewhere else").key == "lora_unet_input_blocks_4_1_proj_in"


def test_modules_that_no_file_names_have_no_key():
    assert names_of("transformer_text_model_embeddings_token_embedding", SD1, lambda key, _: key) is None


def test_no_file_names_the_refiners_text_encoder() -> None:
    """The WebUI leads `lora_te2_` to a second text encoder, and the refiner has one."""
    assert names_of("0_model_transformer_resblocks_3_mlp_c_fc", REFINER, lambda key, _: key) is None
    unet = names_of("diffusion_model_input_blocks_4_1_proj_in", REFINER, lambda key, _: key)
    assert unet.key == "lora_unet_input_blocks_4_1_proj_in"
