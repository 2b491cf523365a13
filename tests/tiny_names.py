"""Names and shapes of the tensors of single-file checkpoints, as ldm, sgm and OpenCLIP have them, at any width.

Written from those models' structure and not by the code under test; `test_real_webui.py` holds them against the WebUI's models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class UNetSizes:
    """Attributes:
    channels, depths: per level; a depth of 0 is a level without attention
    middle: depth of the middle block
    context: numbers of a token
    linear: whether transformers are entered and left by linear layers
    vector: numbers of what is told beside the prompt, or None
    inputs: channels that are read
    """

    channels: Sequence[int]
    depths: Sequence[int]
    middle: int
    context: int
    linear: bool
    vector: int | None = None
    inputs: int = 4


def affine(name: str, *shape: int) -> Shapes:
    """A weight and its bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def unet(sizes: UNetSizes, prefix: str = "model.diffusion_model.") -> Shapes:
    """ldm's and sgm's UNetModel, two residual blocks to a level."""
    yield from ((prefix + name, shape) for name, shape in _unet(sizes))


def _unet(sizes: UNetSizes) -> Shapes:
    first = sizes.channels[0]
    yield from affine("time_embed.0", 4 * first, first)
    yield from affine("time_embed.2", 4 * first, 4 * first)
    if sizes.vector:
        yield from affine("label_emb.0.0", 4 * first, sizes.vector)
        yield from affine("label_emb.0.2", 4 * first, 4 * first)
    yield from affine("input_blocks.0.0", first, sizes.inputs, 3, 3)
    skips, now, number = [first], first, 1
    for level, (width, depth) in enumerate(zip(sizes.channels, sizes.depths, strict=True)):
        for _ in range(2):
            yield from _residual(f"input_blocks.{number}.0", now, width, 4 * first)
            yield from _transformer(f"input_blocks.{number}.1", width, depth, sizes)
            now, number = width, number + 1
            skips.append(now)
        if level < len(sizes.channels) - 1:
            yield from affine(f"input_blocks.{number}.0.op", now, now, 3, 3)
            number += 1
            skips.append(now)
    yield from _residual("middle_block.0", now, now, 4 * first)
    yield from _transformer("middle_block.1", now, sizes.middle, sizes)
    yield from _residual("middle_block.2", now, now, 4 * first)
    number = 0
    for level in reversed(range(len(sizes.channels))):
        width, depth = sizes.channels[level], sizes.depths[level]
        for block in range(3):
            yield from _residual(f"output_blocks.{number}.0", now + skips.pop(), width, 4 * first)
            yield from _transformer(f"output_blocks.{number}.1", width, depth, sizes)
            now = width
            if level and block == 2:
                yield from affine(f"output_blocks.{number}.{2 if depth else 1}.conv", now, now, 3, 3)
            number += 1
    yield from affine("out.0", now)
    yield from affine("out.2", 4, now, 3, 3)


def _residual(name: str, c_in: int, c_out: int, time: int) -> Shapes:
    yield from affine(f"{name}.in_layers.0", c_in)
    yield from affine(f"{name}.in_layers.2", c_out, c_in, 3, 3)
    yield from affine(f"{name}.emb_layers.1", c_out, time)
    yield from affine(f"{name}.out_layers.0", c_out)
    yield from affine(f"{name}.out_layers.3", c_out, c_out, 3, 3)
    if c_in != c_out:
        yield from affine(f"{name}.skip_connection", c_out, c_in, 1, 1)


def _transformer(name: str, width: int, depth: int, sizes: UNetSizes) -> Shapes:
    if not depth:
        return
    ones = () if sizes.linear else (1, 1)
    yield from affine(f"{name}.norm", width)
    yield from affine(f"{name}.proj_in", width, width, *ones)
    yield from affine(f"{name}.proj_out", width, width, *ones)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for norm in (1, 2, 3):
            yield from affine(f"{block}.norm{norm}", width)
        for attention, context in (("attn1", width), ("attn2", sizes.context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, context)
            yield f"{block}.{attention}.to_v.weight", (width, context)
            yield from affine(f"{block}.{attention}.to_out.0", width, width)
        yield from affine(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from affine(f"{block}.ff.net.2", width, 4 * width)


def clip(prefix: str, width: int, layers: int) -> Shapes:
    """transformers' CLIPTextModel."""
    text = f"{prefix}text_model."
    yield f"{text}embeddings.token_embedding.weight", (49408, width)
    yield f"{text}embeddings.position_embedding.weight", (77, width)
    for number in range(layers):
        layer = f"{text}encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from affine(f"{layer}.self_attn.{projection}", width, width)
        yield from affine(f"{layer}.mlp.fc1", 4 * width, width)
        yield from affine(f"{layer}.mlp.fc2", width, 4 * width)
        yield from affine(f"{layer}.layer_norm1", width)
        yield from affine(f"{layer}.layer_norm2", width)
    yield from affine(f"{text}final_layer_norm", width)


def open_clip(prefix: str, width: int, layers: int) -> Shapes:
    """The text half of OpenCLIP's CLIP."""
    yield f"{prefix}positional_embedding", (77, width)
    yield f"{prefix}text_projection", (width, width)
    yield f"{prefix}logit_scale", ()
    yield f"{prefix}token_embedding.weight", (49408, width)
    for number in range(layers):
        block = f"{prefix}transformer.resblocks.{number}"
        yield from affine(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from affine(f"{block}.attn.out_proj", width, width)
        yield from affine(f"{block}.ln_2", width)
        yield from affine(f"{block}.mlp.c_fc", 4 * width, width)
        yield from affine(f"{block}.mlp.c_proj", width, 4 * width)
    yield from affine(f"{prefix}ln_final", width)


def vae(width: int, prefix: str = "first_stage_model.") -> Shapes:
    """ldm's AutoencoderKL with four levels of one width, one residual block to a level."""
    yield from ((prefix + name, shape) for name, shape in _vae(width))


def _vae(width: int) -> Shapes:
    for side, blocks, c_in, c_out in (("encoder", 1, 3, 8), ("decoder", 2, 4, 3)):
        yield from affine(f"{side}.conv_in", width, c_in, 3, 3)
        for level in range(4):
            place = f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"
            for number in range(blocks):
                yield from _vae_residual(f"{place}.block.{number}", width)
            if side == "encoder" and level < 3:
                yield from affine(f"{place}.downsample.conv", width, width, 3, 3)
            if side == "decoder" and level > 0:
                yield from affine(f"{place}.upsample.conv", width, width, 3, 3)
        yield from _vae_residual(f"{side}.mid.block_1", width)
        yield from affine(f"{side}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from affine(f"{side}.mid.attn_1.{part}", width, width, 1, 1)
        yield from _vae_residual(f"{side}.mid.block_2", width)
        yield from affine(f"{side}.norm_out", width)
        yield from affine(f"{side}.conv_out", c_out, width, 3, 3)
    yield from affine("quant_conv", 8, 8, 1, 1)
    yield from affine("post_quant_conv", 4, 4, 1, 1)


def _vae_residual(name: str, width: int) -> Shapes:
    for number in (1, 2):
        yield from affine(f"{name}.norm{number}", width)
        yield from affine(f"{name}.conv{number}", width, width, 3, 3)
