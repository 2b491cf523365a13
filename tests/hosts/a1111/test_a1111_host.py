"""The WebUI's host adapter against a stand-in of the WebUI; `test_real_webui.py` asks the real one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from webui_adapter import PACKED, Q_SD1, UNET_SD1, delta, predict
from webui_stand_in import StandIn
from webui_stand_in_model import WIDTH

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts import a1111, running
from lib_loraclr.model.families import REFINER, SD1, SDXL
from lib_loraclr.recording.input_rows import record_inputs, shared_inputs

# -- outside the WebUI


def test_outside_the_webui_the_adapter_says_so():
    with pytest.raises(LoraclrError, match="inside the WebUI only"), a1111.session():
        pass


def test_without_the_built_in_lora_the_adapter_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StandIn(tmp_path).install(monkeypatch, lora=False)
    for use in (running.installed_loras, lambda: a1111.session().__enter__()):
        with pytest.raises(LoraclrError, match="built-in extension Lora is switched off"):
            use()


def test_importing_the_adapter_imports_nothing_of_the_webui():
    assert "lib_loraclr.hosts.a1111" in sys.modules and "networks" not in sys.modules


# -- the host


def test_the_host_tells_what_is_loaded(host: a1111.A1111Host):
    assert (host.family, host.name, host.checkpoint) == (SD1, "a1111", "tiny.safetensors [0123456789]")
    assert (host.default_size, host.latent_channels, host.pixels_per_latent) == (128, 4, 8)
    assert host.prediction_type == "epsilon" and len(host.alphas_cumprod) == 1000
    assert set(host.layers()) >= {Q_SD1, UNET_SD1, "lora_unet_conv_in"}
    assert host.aliases["lora_unet_input_blocks_0_0"] == "lora_unet_conv_in"


def test_velocity_is_told_from_noise(webui: StandIn):
    webui.model.parameterization = "v"
    with a1111.session() as host:
        assert host.prediction_type == "v_prediction"


def test_sdxl_has_two_text_encoders_the_second_one_packed(xl: a1111.A1111Host):
    assert xl.family == SDXL and xl.default_size == 1024
    layers = xl.layers()
    packed = [layers[f"{PACKED}{letter}_proj"] for letter in "qkv"]
    assert [layer.rows for layer in packed] == [slice(0, 8), slice(8, 16), slice(16, 24)]
    assert all(layer.shape == (WIDTH, WIDTH) for layer in (*packed, layers[f"{PACKED}out_proj"]))


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_a_packed_projection_is_changed_and_gets_its_gradient(xl: a1111.A1111Host, part: str):
    attention = xl.layers()[PACKED + part].module
    factors, base = delta(trained=True), predict(xl, "a cat")
    with xl.apply({PACKED + part: factors}):
        changed = predict(xl, "a cat")
        changed.sum().backward()
    assert factors.up.grad.abs().max() > 0 and not torch.equal(changed, base)
    packed = attention.out_proj.weight if part == "out_proj" else attention.in_proj_weight
    place = "qkv".find(part[0]) * WIDTH
    rows = slice(None) if part == "out_proj" else slice(place, place + WIDTH)
    with torch.no_grad():
        packed[rows] += factors.dense()
        assert torch.allclose(predict(xl, "a cat"), changed, atol=1e-6)
        packed[rows] -= factors.dense()


def test_what_enters_packed_projections_is_recorded(xl: a1111.A1111Host):
    keys = [f"{PACKED}{part}_proj" for part in ("q", "k", "v", "out")]
    attention = xl.layers()[keys[0]].module
    seen = []
    attention.register_forward_hook(lambda module, given, output: seen.append((given[0], output[0])))
    serves = shared_inputs(xl.layers(), keys, lambda: xl.encode(["a cat"]))
    assert serves == {**dict.fromkeys(keys[:3], keys[0]), keys[3]: keys[3]}
    seen.clear()
    # the change comes after the recording, and yet what is recorded before the out projection knows of it
    recording = record_inputs(xl.layers(), dict.fromkeys(keys, 77), seed=0)
    with recording as recorder, xl.apply({keys[2]: delta()}), torch.no_grad():
        xl.encode(["a cat"])
    rows, [(given, output)] = recorder.result(), seen
    projected = nn.functional.linear(rows[keys[3]].float(), attention.out_proj.weight, attention.out_proj.bias)
    for recorded, expected in ((rows[keys[0]].float(), given), (projected, output)):
        assert torch.allclose(recorded.sort(0).values, expected.reshape(-1, WIDTH).sort(0).values, atol=5e-3)


def test_the_conditioner_lets_gradients_through_and_is_put_back(xl: a1111.A1111Host):
    first, second = xl.model.conditioner.embedders[:2]
    first_key = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    factors = {first_key: delta(trained=True), f"{PACKED}v_proj": delta(trained=True)}
    with xl.apply(factors):
        predict(xl, "a cat").sum().backward()
    assert all(f.up.grad.abs().max() > 0 for f in factors.values())
    assert not first.is_trainable and not second.is_trainable


def test_sdxl_is_told_the_size_of_the_picture_that_is_denoised(xl: a1111.A1111Host):
    conditioning = xl.encode(["a cat"])
    assert set(conditioning.tensors) == {"context", "length", "pooled", "score"}
    assert conditioning.tensors["pooled"].shape == (1, WIDTH)
    told = []
    xl.model.apply_model = lambda x, t, given: told.append(given["vector"][0, WIDTH:]) or x
    for height, width in ((8, 8), (8, 16)):
        xl.denoise(torch.zeros(1, 4, height, width), torch.zeros(1), conditioning)
    crop = torch.zeros(6)
    for vector, width in zip(told, (64, 128), strict=True):
        size = torch.tensor([64, 32, 16, width, width / 2, width / 4]) / 1000
        assert torch.allclose(vector, torch.cat([size, crop, size]))


def test_the_refiner_is_told_a_score_and_has_the_unets_layers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StandIn(tmp_path, "SDXL refiner").install(monkeypatch)
    with a1111.session() as host:
        assert host.family == REFINER and not host.inpainting
        assert host.layers().keys() and all(key.startswith("lora_unet_") for key in host.layers())
        conditioning, told = host.encode(["a cat", ""]), []
        host.model.apply_model = lambda x, t, given: told.append(given["vector"][:, WIDTH:]) or x
        host.denoise(torch.zeros(2, 4, 8, 8), torch.zeros(2), conditioning)
    size, crop = torch.tensor([64, 32, 16, 64, 32, 16]) / 1000, torch.zeros(6)
    for vector, score in zip(told[0], (6.0, 2.5), strict=True):
        assert torch.allclose(vector, torch.cat([size, crop, torch.tensor([score, score / 2, score / 4]) / 1000]))


def test_an_inpainting_model_reads_the_same_mask_and_grey_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StandIn(tmp_path, channels=9).install(monkeypatch)
    read = []
    for _ in range(2):
        with a1111.session() as host:
            assert host.family == SD1 and host.inpainting and host.latent_channels == 4
            torch.manual_seed(int(torch.randint(1000, ())))
            state = torch.get_rng_state()
            handle = host.model.model.diffusion_model.register_forward_pre_hook(lambda _, given: read.append(given[0]))
            predict(host, "a cat", " ".join(["word"] * 100))
            handle.remove()
            assert torch.equal(torch.get_rng_state(), state), "the WebUI's own random numbers stay as they were"
    masked = [x[:, 4:] for x in read]
    assert all(part.shape == (1, 5, 8, 8) and (part[:, 0] == 1).all() for part in masked)
    assert all(torch.equal(part, masked[0]) for part in masked) and masked[0][:, 1:].abs().max() > 0


def test_an_empty_prompt_is_zeros_in_sdxl(xl: a1111.A1111Host):
    both = xl.encode(["", "a cat"])
    assert both.tensors["context"][0].abs().max() == 0 and both.tensors["context"][1].abs().max() > 0


def test_prompts_are_encoded_together_but_for_those_that_would_change_others(host: a1111.A1111Host):
    calls = host.model.cond_stage_model.calls
    calls.clear()
    host.encode(["a cat", "a (big:1.3) cat", "a dog <lora:x:1>", "a cat", ""])
    assert sorted(calls) == [[""], ["a (big:1.3) cat"], ["a cat", "a dog "]]


def test_recomputing_gives_the_same_gradients_and_is_undone(host: a1111.A1111Host):
    block = host.model.model.diffusion_model.input_blocks[1][1]
    someone_elses = block.forward
    block.forward = someone_elses

    def gradients(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        factors = {UNET_SD1: delta(trained=True), Q_SD1: delta(trained=True)}
        with host.apply(factors):
            if recompute:
                with host.recomputing():
                    assert block.forward != someone_elses
                    output = predict(host, "a cat")
            else:
                output = predict(host, "a cat")
            output.square().sum().backward()
        return [f.up.grad for f in factors.values()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0 and torch.allclose(plain, recomputed)
    assert block.forward == someone_elses


def test_pictures_are_of_the_size_of_the_latents(host: a1111.A1111Host):
    [picture] = host.decode(torch.zeros(1, 4, 4, 6))
    assert picture.size == (48, 32) and picture.getpixel((0, 0)) == (127, 127, 127)


def test_a_picture_that_is_not_a_number_is_reported(webui: StandIn):
    def fail(*_: object, **__: object) -> None:
        raise webui.devices.NansException("A tensor with NaNs was produced in VAE.")

    webui.processing.decode_latent_batch = fail
    with pytest.raises(LoraclrError, match="NaNs was produced in VAE"), a1111.session() as host:
        host.decode(torch.zeros(1, 4, 4, 4))


def test_sparing_memory_on_a_card_is_an_obstacle_to_the_refinement(host: a1111.A1111Host):
    assert host.refinement_obstacle() is None
    host.model.lowvram, host.device = True, torch.device("cuda")
    assert "--medvram" in host.refinement_obstacle()


# -- on a graphics card


def test_attention_is_recomputed_as_it_ran(webui: StandIn, host: a1111.A1111Host):
    """What is free while a block is recomputed is another figure, by which attention would be cut otherwise."""
    free = iter(range(1000, 0, -100))
    ask = webui.sd_hijack_optimizations.get_available_vram = lambda: next(free)
    with pytest.raises(RuntimeError, match="on purpose"), host.recomputing():
        asked = [webui.sd_hijack_optimizations.get_available_vram() for _ in range(3)]
        raise RuntimeError("on purpose")
    assert asked == [500] * 3, "half of what was free at first"
    assert webui.sd_hijack_optimizations.get_available_vram is ask


def test_a_vae_that_a_picture_made_more_precise_is_as_before(webui: StandIn, host: a1111.A1111Host):
    def decode(model: nn.Module, latents: torch.Tensor, **_: object) -> list[torch.Tensor]:
        webui.devices.dtype_vae = torch.float32
        model.first_stage_model.to(torch.float32)
        return list(latents[:, :3])

    webui.processing.decode_latent_batch = decode
    before = host.model.first_stage_model.weight.clone()
    assert len(host.decode(torch.zeros(1, 4, 8, 8))) == 1
    assert webui.devices.dtype_vae == torch.float16 and torch.equal(host.model.first_stage_model.weight, before)


@pytest.mark.parametrize("by_hand", [False, True])
def test_packed_attention_is_changed_in_the_precision_it_is_cast_to(
    xl: a1111.A1111Host, monkeypatch: pytest.MonkeyPatch, by_hand: bool
):
    """On Apple's and Intel's chips `devices.manual_cast` casts the parameters for each call, and what enters, to fp32."""
    attention = xl.layers()[f"{PACKED}q_proj"].owner
    expected = copy.deepcopy(attention).float()
    deltas = {f"{PACKED}{letter}_proj": delta() for letter in ("q", "out")}
    packed, out = deltas.values()
    with torch.no_grad():
        expected.in_proj_weight[:WIDTH] += packed.dense()
        expected.out_proj.weight += out.dense()
    x = torch.randn(3, 1, WIDTH)
    attention.bfloat16()
    forward = nn.MultiheadAttention.forward

    def cast(self: nn.MultiheadAttention, *arguments: torch.Tensor, **named: object):
        self.float()
        try:
            return forward(self, *(tensor.float() for tensor in arguments), **named)
        finally:
            self.bfloat16()

    if by_hand:
        monkeypatch.setattr(nn.MultiheadAttention, "forward", cast)
        monkeypatch.setattr(nn.MultiheadAttention, "org_forward", forward, raising=False)
    given = x if by_hand else x.bfloat16()
    with torch.no_grad(), xl.apply(deltas):
        found, _ = attention(given, given, given, need_weights=False)
    theirs, _ = expected(x, x, x, need_weights=False)
    assert attention.in_proj_weight.dtype == torch.bfloat16, "as it was"
    torch.testing.assert_close(found.float(), theirs, rtol=0.05, atol=0.05)
