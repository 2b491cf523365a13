"""compvis' and diffusers' names of a UNet's modules: each from the other, against a table written out by hand."""

from __future__ import annotations

import pytest

from lib_loraclr.files.unet_names import compvis_names, diffusers_name

#: compvis -> diffusers, of SD1's topology (attention on every level but the innermost)
SD1 = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "input_blocks_1_0_in_layers_0": "down_blocks_0_resnets_0_norm1",
    "input_blocks_1_0_in_layers_2": "down_blocks_0_resnets_0_conv1",
    "input_blocks_2_1_proj_in": "down_blocks_0_attentions_1_proj_in",
    "input_blocks_3_0_op": "down_blocks_0_downsamplers_0_conv",
    "input_blocks_4_0_skip_connection": "down_blocks_1_resnets_0_conv_shortcut",
    "input_blocks_8_1_transformer_blocks_0_attn2_to_k": "down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_k",
    "input_blocks_9_0_op": "down_blocks_2_downsamplers_0_conv",
    "input_blocks_11_0_emb_layers_1": "down_blocks_3_resnets_1_time_emb_proj",
    "middle_block_0_in_layers_2": "mid_block_resnets_0_conv1",
    "middle_block_1_proj_out": "mid_block_attentions_0_proj_out",
    "middle_block_2_out_layers_3": "mid_block_resnets_1_conv2",
    "output_blocks_0_0_out_layers_0": "up_blocks_0_resnets_0_norm2",
    "output_blocks_2_1_conv": "up_blocks_0_upsamplers_0_conv",
    "output_blocks_3_1_norm": "up_blocks_1_attentions_0_norm",
    "output_blocks_5_2_conv": "up_blocks_1_upsamplers_0_conv",
    "output_blocks_11_1_transformer_blocks_0_ff_net_0_proj": "up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
}
#: of SDXL's, where the innermost level has attention and the outermost none
SDXL = {
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_4_1_transformer_blocks_1_attn1_to_out_0": "down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_out_0",
    "input_blocks_6_0_op": "down_blocks_1_downsamplers_0_conv",
    "output_blocks_1_1_norm": "up_blocks_0_attentions_1_norm",
    "output_blocks_2_2_conv": "up_blocks_0_upsamplers_0_conv",
    "output_blocks_5_2_conv": "up_blocks_1_upsamplers_0_conv",
    "output_blocks_3_1_proj_in": "up_blocks_1_attentions_0_proj_in",
    "output_blocks_8_0_in_layers_2": "up_blocks_2_resnets_2_conv1",
}


@pytest.mark.parametrize("table", [SD1, SDXL], ids=["SD1", "SDXL"])
def test_each_name_gives_the_other(table: dict[str, str]) -> None:
    assert {compvis: diffusers_name(compvis) for compvis in table} == table
    assert compvis_names(table.values()) == {diffusers: compvis for compvis, diffusers in table.items()}


@pytest.mark.parametrize("name", ["conv_in", "input_blocks_1_0", "input_blocks_1_0_somewhere", "out_1", ""])
def test_what_diffusers_does_not_have_has_no_name_there(name: str) -> None:
    assert diffusers_name(name) is None


@pytest.mark.parametrize("name", ["input_blocks_0_0", "mid_block", "down_blocks_0_resnets_0_dropout", "text_model"])
def test_what_compvis_does_not_have_has_no_name_there(name: str) -> None:
    assert compvis_names([name]) == {}
