"""The WebUI's host adapter against a stand-in of the WebUI; `test_real_webui.py` asks the real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from webui_stand_in import WIDTH, StandIn

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import a1111
from lib_loraclr.hosts.a1111.names import names_of
from lib_loraclr.hosts.base import SD1, SD2, SDXL, Conditioning, Family
from lib_loraclr.low_rank import Factors
from lib_loraclr.recording import record_inputs, shared_inputs

Q_SD1 = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
UNET_SD1 = "lora_unet_down_blocks_0_attentions_0_attn1_to_q"
PACKED = "lora_te2_text_model_encoder_layers_0_self_attn_"


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    (tmp_path / "Lora").mkdir()
    return StandIn(tmp_path / "Lora").install(monkeypatch)


@pytest.fixture
def host(webui: StandIn) -> Iterator[a1111.A1111Host]:
    with a1111.session() as opened:
        yield opened


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[a1111.A1111Host]:
    StandIn(tmp_path, sdxl=True).install(monkeypatch)
    with a1111.session() as opened:
        yield opened


def delta(d_out: int = WIDTH, d_in: int = WIDTH, *, trained: bool = False) -> Factors:
    factors = Factors(torch.randn(d_out, 2), torch.randn(2, d_in))
    return Factors(factors.up.requires_grad_(), factors.down.requires_grad_()) if trained else factors


def predict(host: a1111.A1111Host, *prompts: str) -> torch.Tensor:
    x = torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8).repeat(len(prompts), 1, 1, 1)
    return host.denoise(x, torch.full((len(prompts),), 500), host.encode(prompts))


# -- outside the WebUI


def test_outside_the_webui_the_adapter_says_so():
    with pytest.raises(LoraclrError, match="inside the WebUI only"), a1111.session():
        pass


def test_without_the_built_in_lora_the_adapter_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StandIn(tmp_path).install(monkeypatch, lora=False)
    for use in (a1111.installed_loras, lambda: a1111.session().__enter__()):
        with pytest.raises(LoraclrError, match="built-in extension Lora is switched off"):
            use()


def test_importing_the_adapter_imports_nothing_of_the_webui():
    assert "lib_loraclr.hosts.a1111" in sys.modules and "networks" not in sys.modules


# -- names


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
    assert names_of(name, family, lambda converted, _: converted).key == key


def test_a_key_that_the_webui_would_lead_elsewhere_is_not_written():
    name = "diffusion_model_input_blocks_4_1_proj_in"
    assert names_of(name, SD1, lambda key, _: "somewhere else").key == "lora_unet_input_blocks_4_1_proj_in"


def test_modules_that_no_file_names_have_no_key():
    assert names_of("transformer_text_model_embeddings_token_embedding", SD1, lambda key, _: key) is None


# -- the session


def test_the_session_is_a_job_in_the_webuis_queue(webui: StandIn):
    lock, state = webui.call_queue.queue_lock, webui.shared.state
    with a1111.session(job="merging"):
        assert lock.locked() and state.job == "merging"
    assert not lock.locked() and state.job == ""


def test_a_lock_that_is_held_is_not_taken_again(webui: StandIn):
    with webui.call_queue.queue_lock, a1111.session(lock_held=True):
        assert webui.shared.state.job == ""


@pytest.mark.parametrize("error", [None, LoraclrError, Interrupted, KeyboardInterrupt])
def test_everything_is_left_as_it_was(webui: StandIn, error: type[BaseException] | None):
    model, hijack = webui.model, webui.sd_hijack.model_hijack
    first = next(model.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    try:
        with a1111.session() as host:
            assert not any(parameter.requires_grad for parameter in model.parameters())
            assert webui.shared.loaded_hypernetworks == []
            hijack.comments.append("one of ours")
            hijack.extra_generation_params["Emphasis"] = "ours"
            if error:
                with host.apply({Q_SD1: delta()}), host.recomputing():
                    raise error
    except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001  (whatever it was, nothing may be left)
        assert isinstance(raised, error)
    assert [parameter.requires_grad for parameter in model.parameters()] == before and not first.requires_grad
    assert webui.shared.loaded_hypernetworks == ["some hypernetwork"]
    assert hijack.comments == ["a comment"] and hijack.extra_generation_params == {}
    assert not webui.call_queue.queue_lock.locked()
    assert not any({"forward", "weight"} & set(vars(module)) for module in model.modules())


def test_a_lora_that_the_last_prompt_left_in_the_weights_is_taken_out(webui: StandIn):
    layer = webui.model.cond_stage_model.wrapped.transformer.text_model.encoder.layers[0].self_attn.q_proj
    layer.network_weights_backup = layer.weight.detach().clone()
    layer.network_current_names = (("penguin", 1.0, 1.0, None),)
    webui.networks.loaded_networks.append("penguin")
    with torch.no_grad():
        layer.weight.add_(1)
    with a1111.session():
        assert torch.equal(layer.weight, layer.network_weights_backup)
        assert layer.network_current_names == () and webui.networks.loaded_networks == []


def test_gradients_work_although_the_caller_infers(webui: StandIn):
    with torch.inference_mode(), a1111.session() as host:
        factors = delta(trained=True)
        with host.apply({Q_SD1: factors}):
            predict(host, "a cat").sum().backward()
        assert factors.up.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda webui: setattr(webui.shared, "sd_model", None), "no checkpoint loaded"),
        (lambda webui: setattr(webui.sd_unet, "current_unet", object()), "SD Unet"),
        (lambda webui: setattr(webui.devices, "fp8", True), "fp8"),
        (lambda webui: setattr(webui.model, "is_sd3", True), "Stable Diffusion 3"),
        (lambda webui: setattr(webui.model.model.diffusion_model, "in_channels", 9), "inpainting"),
        (lambda webui: setattr(webui.model.model, "conditioning_key", "crossattn-adm"), "inpainting or editing"),
    ],
)
def test_what_cannot_be_merged_on_is_refused(webui: StandIn, change: Callable[[StandIn], None], message: str):
    change(webui)
    with pytest.raises(LoraclrError, match=message), a1111.session():
        pass
    assert not webui.call_queue.queue_lock.locked()


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
    with recording as result, xl.apply({keys[2]: delta()}), torch.no_grad():
        xl.encode(["a cat"])
    rows, [(given, output)] = result(), seen
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
    assert set(conditioning.tensors) == {"context", "length", "pooled"}
    assert conditioning.tensors["pooled"].shape == (1, WIDTH)
    told = []
    xl.model.apply_model = lambda x, t, given: told.append(given["vector"][0, WIDTH:]) or x
    for height, width in ((8, 8), (8, 16)):
        xl.denoise(torch.zeros(1, 4, height, width), torch.zeros(1), conditioning)
    crop = torch.zeros(6)
    for vector, width in zip(told, (64, 128), strict=True):
        size = torch.tensor([64, 32, 16, width, width / 2, width / 4]) / 1000
        assert torch.allclose(vector, torch.cat([size, crop, size]))


def test_an_empty_prompt_is_zeros_in_sdxl(xl: a1111.A1111Host):
    both = xl.encode(["", "a cat"])
    assert both.tensors["context"][0].abs().max() == 0 and both.tensors["context"][1].abs().max() > 0


def test_prompts_are_encoded_together_but_for_those_that_would_change_others(host: a1111.A1111Host):
    calls = host.model.cond_stage_model.calls
    calls.clear()
    host.encode(["a cat", "a (big:1.3) cat", "a dog <lora:x:1>", "a cat", ""])
    assert sorted(calls) == [[""], ["a (big:1.3) cat"], ["a cat", "a dog "]]


def test_prompts_of_different_lengths_share_a_batch(host: a1111.A1111Host):
    long = " ".join(["word"] * 100)
    texts = ["a cat", long, "a dog"]
    x = torch.randn(3, 4, 8, 8)
    t = torch.tensor([1, 500, 999])
    together = host.denoise(x, t, Conditioning.cat([host.encode([text]) for text in texts]))
    alone = [host.denoise(x[i : i + 1], t[i : i + 1], host.encode([text])) for i, text in enumerate(texts)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


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


# -- progress


def test_progress_fills_the_webuis_bar(webui: StandIn):
    state = webui.shared.state
    progress = a1111.StateProgress({"recording": 30.0, "refining": 10.0})
    progress.start("recording", 4)
    progress.advance(2, "penguin")
    assert (state.job_count, state.job_no, state.sampling_step, state.sampling_steps) == (1, 0, 375, 1000)
    assert state.textinfo == "recording 2/4 · penguin"
    progress.start("refining", 2)
    progress.advance(1)
    assert progress.fraction() == pytest.approx(0.875)


def test_the_interrupt_button_is_heard(webui: StandIn):
    progress = a1111.StateProgress()
    progress.start("recording", 4)
    progress.advance()
    webui.shared.state.interrupted = True
    with pytest.raises(Interrupted):
        progress.advance()


# -- the library


@pytest.fixture
def lora_file(webui: StandIn) -> Callable[..., Path]:
    def write(name: str, metadata: dict | None = None, card: dict | None = None, suffix: str = ".safetensors") -> Path:
        path = a1111.lora_dir() / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        webui.networks.metadata[path.stem] = metadata or {}
        if card is not None:
            path.with_suffix(".json").write_text(json.dumps(card))
        webui.networks.list_available_networks()
        return path

    return write


def test_triggers_come_from_card_then_metadata_then_name(lora_file: Callable[..., Path]):
    # the WebUI has parsed what looks like a JSON object
    tags = {"ss_tag_frequency": {"folder": {"frequent": 9, "rare": 1}}}
    phrase = {"modelspec.trigger_phrase": "the phrase"}
    lora_file("card", {**tags, **phrase}, {"activation text": "the card"})
    lora_file("phrase", {**tags, **phrase}, {"activation text": ""})
    lora_file("tags", tags)
    lora_file("nothing")
    found = {lora.name: (lora.trigger, lora.trigger_is_guess) for lora in a1111.installed_loras()}
    assert found == {
        "card": ("the card", False),
        "phrase": ("the phrase", False),
        "tags": ("frequent", False),
        "nothing": ("nothing", True),
    }


def test_the_card_decides_on_the_family(lora_file: Callable[..., Path]):
    lora_file("a", {"ss_base_model_version": "sdxl_base_v1-0"})
    lora_file("b", {"ss_base_model_version": "sdxl_base_v1-0"}, {"sd version": "SD1"})
    lora_file("c", card={"sd version": "nonsense"})
    assert [lora.family for lora in a1111.installed_loras()] == ["SDXL", "SD1", "Unknown"]


def test_what_does_not_fit_is_told_why(lora_file: Callable[..., Path]):
    lora_file("a", {"ss_base_model_version": "sdxl_base_v1-0"})
    lora_file("b", suffix=".pt")
    lora_file("c")
    xl, pickle, unknown = a1111.installed_loras()
    assert "SDXL" in xl.obstacle("SD1") and xl.obstacle("SDXL") is None
    assert ".safetensors" in pickle.obstacle("SD1") and unknown.obstacle("SD1") is None


def test_a_lora_has_its_folder_preview_and_licence(lora_file: Callable[..., Path]):
    path = lora_file("people/anna", {"modelspec.license": "CC0"})
    path.with_suffix(".preview.png").write_bytes(b"")
    [found] = a1111.installed_loras()
    assert (found.folder, found.licence) == ("people", "CC0")
    assert found.preview == path.with_suffix(".preview.png")


def test_a_lora_is_found_by_name_or_alias_also_if_it_is_new(lora_file: Callable[..., Path]):
    lora_file("anna", {"ss_output_name": "anna-v2"})
    assert a1111.find_lora("anna") == a1111.find_lora("anna-v2")
    (a1111.lora_dir() / "new.safetensors").write_bytes(b"")
    assert a1111.find_lora("new").name == "new"
    for name in ("ana", "../anna", str(a1111.lora_dir() / "anna.safetensors")):
        with pytest.raises(LoraclrError, match="There is no installed LoRA"):
            a1111.find_lora(name)


def test_a_free_name_is_free_in_every_folder(lora_file: Callable[..., Path]):
    lora_file("people/Merge")
    (a1111.lora_dir() / "merge-2.json").write_text("{}")
    assert a1111.free_name("merge") == "merge-3"
    assert a1111.free_name("merge-2", "new folder") == "new folder/merge-2"
    with pytest.raises(LoraclrError, match="output name"):
        a1111.free_name("..", "")


def test_an_announced_lora_has_no_stale_copy(webui: StandIn, lora_file: Callable[..., Path]):
    path = lora_file("merge")
    webui.networks.networks_in_memory["its-alias"] = SimpleNamespace(network_on_disk=SimpleNamespace(name="merge"))
    assert a1111.announce(path).name == "merge"
    assert webui.networks.networks_in_memory == {}
    assert webui.processing.StableDiffusionProcessing.cached_c == [None, None]
    assert not webui.call_queue.queue_lock.locked()


def test_a_lora_outside_the_folders_is_not_announced(webui: StandIn, tmp_path: Path):
    outside = tmp_path / "elsewhere.safetensors"
    outside.write_bytes(b"")
    with pytest.raises(LoraclrError, match="does not list"):
        a1111.announce(outside)
