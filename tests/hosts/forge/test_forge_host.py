"""Forge's host against a stand-in of Forge; `test_real_forge.py` asks the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forge_adapter import Q_SD1, UNET_SD1, delta, predict
from webui_stand_in_forge import ALPHAS, ForgeStandIn
from webui_stand_in_model import WIDTH

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts import forge, running
from lib_loraclr.model.families import REFINER, SD1, SDXL


def test_the_host_is_chosen_by_what_the_webui_offers(forge_webui: ForgeStandIn):
    assert forge.is_here() and running.loaded_family() is SD1 and running.peek().name == "forge"
    with running.session() as host:
        assert isinstance(host, forge.ForgeHost)
    del forge_webui.sd_models.forge_model_reload
    assert not forge.is_here(), "control"


def test_the_host_tells_what_is_loaded(forge_host: forge.ForgeHost):
    assert (forge_host.family, forge_host.name) == (SD1, "forge")
    assert forge_host.checkpoint == "tiny.safetensors [0123456789]"
    torch.testing.assert_close(forge_host.alphas_cumprod, ALPHAS)
    assert set(forge_host.layers()) >= {Q_SD1, f"{Q_SD1}.bias", UNET_SD1, "lora_unet_conv_in", "lora_unet_out"}
    assert forge_host.aliases["lora_unet_input_blocks_0_0"] == "lora_unet_conv_in"
    assert forge_host.aliases[Q_SD1.replace("lora_te_", "lora_te1_")] == Q_SD1


def test_a_layer_that_forge_reads_no_lora_for_is_none(forge_host: forge.ForgeHost):
    """The text encoder's norms, and a projection whose weight nothing loaded."""
    assert not any("layer_norm" in key or "text_projection" in key for key in forge_host.layers())


def test_xl_has_two_text_encoders_by_their_numbers(forge_xl: forge.ForgeHost):
    assert forge_xl.family is SDXL and forge_xl.clip_skip == 2
    for encoder in ("te1", "te2"):
        assert f"lora_{encoder}_text_model_encoder_layers_0_self_attn_q_proj" in forge_xl.layers()


def test_the_refiner_is_told_a_score_and_has_the_unets_layers_only(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ForgeStandIn(folder, "SDXL refiner").install(monkeypatch)
    with forge.session() as host:
        assert host.family is REFINER and all(key.startswith("lora_unet_") for key in host.layers())
        told = vectors_told(host, ["a cat", ""])
    for vector, score in zip(told, (6.0, 2.5), strict=True):
        expected = torch.tensor([64.0, 64.0, 0.0, 0.0, score])[:, None] / torch.tensor([1.0, 2.0, 4.0]) / 1000
        torch.testing.assert_close(vector[WIDTH:], expected.flatten())


def vectors_told(host: forge.ForgeHost, prompts: list[str], width: int = 8) -> torch.Tensor:
    """What the UNet is told beside the context, `[b, p + n · 3]`."""
    told = []
    unet = host.model.forge_objects_original.unet.model.diffusion_model
    handle = unet.label.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    host.denoise(torch.zeros(len(prompts), 4, 8, width), torch.zeros(len(prompts)), host.encode(prompts))
    handle.remove()
    return torch.cat(told)


def test_xl_is_told_the_size_of_the_picture_and_an_empty_prompt_is_zeros(forge_xl: forge.ForgeHost):
    cat, empty = vectors_told(forge_xl, ["a cat", ""], width=16)
    for vector in (cat, empty):
        expected = torch.tensor([64.0, 128.0, 0.0, 0.0, 64.0, 128.0])[:, None] / torch.tensor([1.0, 2.0, 4.0]) / 1000
        torch.testing.assert_close(vector[WIDTH:], expected.flatten())
    assert cat[:WIDTH].abs().max() > 0 and empty[:WIDTH].abs().max() == 0
    assert forge_xl.encode([""]).tensors["context"].abs().max() == 0


def test_prompts_are_encoded_together_but_for_those_that_would_change_others(forge_host: forge.ForgeHost):
    calls = forge_host.model.text_processing_engine.calls
    calls.clear()
    forge_host.encode(["a cat", "a (big:1.3) cat", "a dog <lora:x:1>", "a cat", ""])
    assert sorted(calls) == [[""], ["a (big:1.3) cat"], ["a cat", "a dog "]]


def test_without_copies_before_norms_the_backward_pass_fails(forge_host: forge.ForgeHost):
    """The control of the contract's gradients: the stand-in has Forge's trap."""
    unet = forge_host.model.forge_objects_original.unet.model.diffusion_model
    for module in unet.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module._forward_pre_hooks.clear()
    with forge_host.apply({UNET_SD1: delta(trained=True), "lora_unet_conv_in": trained_conv()}):
        prediction = predict(forge_host, "a cat")
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            prediction.sum().backward()


def trained_conv():
    from lib_loraclr.model.low_rank import Factors

    return Factors(torch.randn(WIDTH, 2).requires_grad_(), torch.randn(2, 4 * 9))


def test_the_schedule_has_zero_terminal_snr_where_pictures_have(forge_webui: ForgeStandIn):
    sigmas = ((1 - ALPHAS) / ALPHAS).sqrt()
    for change in (
        lambda: setattr(forge_webui.model.model_config, "ztsnr", True),
        lambda: setattr(forge_webui.shared.opts, "sd_noise_schedule", "Zero Terminal SNR"),
    ):
        change()
        with forge.session() as host:
            torch.testing.assert_close(host.alphas_cumprod, 1 / (4 * sigmas.square() + 1))
        forge_webui.model.model_config.ztsnr = False
    assert torch.equal(forge_webui.model.forge_objects_original.unet.model.predictor.sigmas, sigmas), "a copy"


def test_velocity_is_told_from_noise(forge_webui: ForgeStandIn):
    forge_webui.model.forge_objects_original.unet.model.predictor.prediction_type = "v_prediction"
    with forge.session() as host:
        assert host.prediction_type == "v_prediction"


def test_an_inpainting_model_reads_the_same_mask_and_grey_every_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ForgeStandIn(folder, channels=9).install(monkeypatch)
    read = []
    with forge.session() as host:
        assert host.inpainting and host.latent_channels == 4
        unet = host.model.forge_objects_original.unet.model.diffusion_model
        handle = unet.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        factors = delta(trained=True)
        for _ in range(2):
            with host.apply({UNET_SD1: factors}):
                predict(host, "a cat").sum().backward()
        handle.remove()
    first, second = (x[:, 4:] for x in read)
    assert first.shape == (1, 5, 8, 8) and (first[:, 0] == 1).all() and torch.equal(first, second)


def test_a_picture_that_is_not_a_number_is_reported(forge_host: forge.ForgeHost):
    forge_host.model.decode_first_stage = lambda latents: latents * float("nan")
    with pytest.raises(LoraclrError, match="--vae-in-fp32"):
        forge_host.decode(torch.zeros(1, 4, 4, 4))


def test_weights_off_the_card_are_an_obstacle_to_the_refinement(forge_host: forge.ForgeHost):
    assert forge_host.refinement_obstacle() is None
    forge_host.device = torch.device("cuda")
    assert "off the card" in forge_host.refinement_obstacle() and "effort layers" in forge_host.refinement_obstacle()


def test_attention_is_recomputed_as_it_ran(forge_webui: ForgeStandIn, forge_host: forge.ForgeHost):
    memory, free = forge_webui.backend["memory_management"], iter(range(1000, 0, -100))
    ask = memory.get_free_memory = lambda device=None, torch_free_too=False: next(free)
    with pytest.raises(RuntimeError, match="on purpose"), forge_host.recomputing():
        assert [memory.get_free_memory("cpu") for _ in range(3)] == [500] * 3, "half of what was free at first"
        assert memory.get_free_memory("cpu", torch_free_too=True) == (500, 0)
        raise RuntimeError("on purpose")
    assert memory.get_free_memory is ask
