"""Every family in the stand-alone host, on tiny checkpoints with the real names of tensors: recognised, encoded, denoised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, multi_head_attention_forward

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.hosts.diffusers.text_encoders import open_clip_weights, text_model
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Tiny
from tests.tiny_hosts import Open, pipeline, predict

KINDS = {kind.name: kind for kind in (*tiny.EVERY, tiny.SD2_V)}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# -- recognising


@every_kind
def test_the_family_is_told_by_the_tensors(opened: Open, kind: Tiny) -> None:
    host = opened(kind)
    assert host.family.name == kind.family
    assert host.inpainting == (kind.sizes.inputs == 9)
    velocity = kind.velocity or "v_pred" in kind.markers
    assert host.prediction_type == ("v_prediction" if velocity else "epsilon")
    assert host.latent_channels == 4
    said = (" for inpainting" if host.inpainting else "") + f", predicts {'velocities' if velocity else 'noise'}, "
    assert host.description.startswith(kind.family + said)
    assert host.default_size == {"SD1": 512, "SD2": 768 if velocity else 512}.get(kind.family, 1024)


@every_kind
def test_every_weight_of_the_unet_is_a_layer_by_its_name_in_the_file(opened: Open, kind: Tiny) -> None:
    host, prefix = opened(kind), "model.diffusion_model."
    files = {name: t for name, t in kind.tensors().items() if name.startswith(prefix) and t.dim() > 1}
    layers = host.layers()
    for name, tensor in files.items():
        key = "lora_unet_" + name[len(prefix) :].removesuffix(".weight").replace(".", "_")
        weight = layers[host.aliases.get(key, key)].weight
        if tensor.shape[1] == 9:
            tensor = tensor[:, :4]  # a LoRA changes what reads latents
        assert torch.equal(weight.flatten(), tensor.flatten()), key
    assert len(files) == sum(key.startswith("lora_unet_") and not layer.is_vector for key, layer in layers.items())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "is Flux"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "is Flux"),
        (["down_blocks.0.2.kv_mapper.1.weight"], "is Stable Cascade"),
        (["transformer_blocks.0.scale_shift_table"], "is a diffusion transformer"),
        (["lora_unet_conv_in.lora_down.weight"], "is a LoRA"),
        (["control_model.time_embed.0.weight"], "is a ControlNet"),
        (["first_stage_model.decoder.conv_in.weight"], "is not a Stable Diffusion checkpoint"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "has not all that"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, names: list[str], said: str) -> None:
    save_file({name: torch.zeros(2, 4) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(
        LoraclrError, match=rf"other\.safetensors {said}.*name (a|one).*Stable Diffusion 1\.x, 2\.x or XL"
    ):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (tiny.SD1, {"cond_stage_model.roberta.x": torch.zeros(1)}, "AltDiffusion"),
        (tiny.SD2, {"depth_model.model.x": torch.zeros(1)}, "with depth"),
        (tiny.SD2, {"embedder.model.ln_final.weight": torch.zeros(1)}, "unCLIP"),
        (tiny.SDXL, {"edm_mean": torch.zeros(1)}, "EDM"),
        (tiny.SD1, {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "InstructPix2Pix"),
    ],
)
def test_a_relative_is_refused_by_name(tmp_path: Path, kind: Tiny, change: Mapping[str, Tensor], said: str) -> None:
    save_file({**kind.tensors(), **change}, tmp_path / "relative.safetensors")
    with pytest.raises(LoraclrError, match=f"is .*{said}.*: name a checkpoint"):
        load(tmp_path / "relative.safetensors")


def test_a_distilled_xl_without_middle_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {name: t for name, t in tiny.SDXL.tensors().items() if ".middle_block.1." not in name}
    save_file(tensors, tmp_path / "ssd.safetensors")
    with pytest.raises(LoraclrError, match="is SSD-1B"):
        load(tmp_path / "ssd.safetensors")


def test_a_folder_for_another_pipeline_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(LoraclrError, match="it is for diffusers' StableDiffusion3Pipeline"):
        load(tmp_path)


# -- what the network predicts


@pytest.mark.parametrize(("bias", "found"), [(-3.0, "v_prediction"), (0.5, "epsilon")])
def test_stable_diffusion_2_is_asked_what_it_predicts(tmp_path: Path, bias: float, found: str) -> None:
    tensors = tiny.SD2.tensors()
    tensors["model.diffusion_model.out.2.weight"] *= 0
    tensors["model.diffusion_model.out.2.bias"] = torch.full((4,), bias)
    save_file(tensors, tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").prediction_type == found


def test_metadata_and_configuration_say_what_is_predicted_the_configuration_last(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tiny.SDXL.tensors(), path, {"modelspec.prediction_type": "v"})
    assert load(path).prediction_type == "v_prediction"
    path.with_suffix(".yaml").write_text(tiny.velocity_yaml(tiny.SDXL), "utf-8")
    assert load(path).prediction_type == "epsilon"


def test_zero_terminal_snr_is_the_webuis_schedule(opened: Open) -> None:
    """`rescale_zero_terminal_snr_abar` in another order: the signal's size, moved and stretched to end at zero."""
    plain, shifted = opened(tiny.SDXL).alphas_cumprod, opened(tiny.SDXL_V).alphas_cumprod
    signal = plain.double().sqrt()
    expected = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    torch.testing.assert_close(shifted[:-1].double(), expected[:-1], rtol=1e-3, atol=1e-7)
    assert 0 < float(shifted[-1]) < 1e-7 and float(plain[-1]) > 4e-3


# -- encoding and denoising


def test_open_clip_is_computed_as_open_clip_computes_it() -> None:
    """Against attention with the packed projections themselves."""
    weights = {name[len("m.") :]: t for name, t in _open_clip_tensors().items()}
    tokens = torch.tensor([[49406, 320, 2368, 49407, *[0] * 73]])
    x = weights["token_embedding.weight"][tokens[0]] + weights["positional_embedding"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for number in range(2):
        w = {n.split(f"resblocks.{number}.")[-1]: t for n, t in weights.items() if f"resblocks.{number}." in n}
        h = layer_norm(x, (128,), w["ln_1.weight"], w["ln_1.bias"])[:, None]
        packed = (w["attn.in_proj_weight"], w["attn.in_proj_bias"], None, None, False, 0.0)
        out = (w["attn.out_proj.weight"], w["attn.out_proj.bias"])
        x = x + multi_head_attention_forward(h, h, h, 128, 2, *packed, *out, attn_mask=mask)[0][:, 0]
        h = layer_norm(x, (128,), w["ln_2.weight"], w["ln_2.bias"])
        h = gelu(linear(h, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
        x = x + linear(h, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
        if number == 0:
            penultimate = x
    last = layer_norm(x, (128,), weights["ln_final.weight"], weights["ln_final.bias"])
    model = text_model(open_clip_weights(_open_clip_tensors(), "m."), heads=None, activation="gelu", projected=True)
    with torch.no_grad():
        found = model(tokens, output_hidden_states=True)
    torch.testing.assert_close(found.hidden_states[-2][0], penultimate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.last_hidden_state[0], last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.text_embeds[0], last[3] @ weights["text_projection"], rtol=1e-4, atol=1e-4)


def _open_clip_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = dict(tiny.names.open_clip("m.", 128, 2))
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


@every_kind
def test_a_prediction_is_that_of_diffusers_own_pipeline(opened: Open, kind: Tiny) -> None:
    host = opened(kind)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        encoded = pipeline(host).encode_prompt(
            "a photo of a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        told = None
        if kind.family == "SDXL":
            told = {"text_embeds": encoded[2], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        if kind.family == "SDXL refiner":
            told = {"text_embeds": encoded[2], "time_ids": torch.tensor([[64.0, 64, 0, 0, 6]])}
        read = x
        if host.inpainting:
            grey = host.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean * host.vae.config.scaling_factor
            read = torch.cat([x, torch.ones(1, 1, 8, 8), grey], dim=1)
        expected = host.unet(read, t, encoded[0], added_cond_kwargs=told).sample
        found = host.denoise(x, t, host.encode(["a photo of a cat"]))
        other = host.denoise(x, t, host.encode(["a photo of a dog"]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (other - expected).abs().max() > 1e-3, "control: prompts differ"


def test_an_empty_prompt_is_zeros_in_xl_and_a_low_score_for_the_refiner(opened: Open) -> None:
    with torch.no_grad():
        for kind in (tiny.SDXL, tiny.REFINER):
            both = opened(kind).encode(["", "a cat"]).tensors
            assert both["context"][0].abs().max() == 0 == both["pooled"][0].abs().max()
            assert both["context"][1].abs().max() > 0 < both["pooled"][1].abs().max()
            assert both["score"].tolist() == [2.5, 6.0]
        assert opened(tiny.SD2_V).encode([""]).tensors["context"].abs().max() > 0


def test_xl_is_told_the_size_of_the_picture_and_inpainting_reads_all_of_it(opened: Open) -> None:
    told = []
    host = opened(tiny.SDXL.inpainting())
    handle = host.unet.register_forward_pre_hook(
        lambda _, given, named: told.append((given[0], named)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            host.denoise(torch.zeros(2, 4, 8, 16), torch.tensor([1, 999]), host.encode(["a cat", ""]))
    finally:
        handle.remove()
    [(read, named)] = told
    assert named["added_cond_kwargs"]["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]] * 2
    assert read.shape == (2, 9, 8, 16) and (read[:, 4] == 1).all() and read[:, 5:].abs().max() > 0


@pytest.mark.parametrize(
    "kind", [tiny.SD1, tiny.SD2_V, tiny.SDXL_V, tiny.REFINER, tiny.SD2.inpainting()], ids=lambda kind: kind.name
)
def test_a_folder_is_the_same_as_the_file(opened: Open, tmp_path: Path, kind: Tiny) -> None:
    host = opened(kind)
    host.unet.save_pretrained(tmp_path / "unet")
    host.vae.save_pretrained(tmp_path / "vae")
    suffixes = ("", "_2") if kind.family == "SDXL" else ("_2",) if kind.family == "SDXL refiner" else ("",)
    for suffix, encoder in zip(suffixes, host.text_encoders, strict=True):
        encoder.model.save_pretrained(tmp_path / f"text_encoder{suffix}")
        encoder.tokenizer.save_pretrained(tmp_path / f"tokenizer{suffix}")
    trained = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    special = {"prediction_type": host.prediction_type, "rescale_betas_zero_snr": "ztsnr" in kind.markers}
    DDIMScheduler(**trained, **special).save_pretrained(tmp_path / "scheduler")
    again = load(tmp_path)
    assert (again.family, again.inpainting, again.prediction_type) == (
        host.family,
        host.inpainting,
        host.prediction_type,
    )
    assert again.layers().keys() == host.layers().keys()
    assert torch.equal(again.alphas_cumprod, host.alphas_cumprod)
    with torch.no_grad():
        torch.testing.assert_close(predict(again, "a cat", ""), predict(host, "a cat", ""))
