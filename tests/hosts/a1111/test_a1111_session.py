"""A session on the stand-in's checkpoint: what it leaves as it was, and what it does not take as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from webui_adapter import Q_SD1, delta, predict
from webui_stand_in import StandIn
from webui_stand_in_model import WIDTH, Model

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import a1111
from lib_loraclr.model.families import SD1, SDXL

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


def test_the_checkpoint_is_the_one_that_is_chosen_not_what_the_last_picture_left(webui: StandIn):
    """A refiner stays loaded until the next picture begins, and tiling stays on."""
    left, webui.chosen, webui.tiling = webui.model, Model("SD1", 4), True
    webui.networks.assign_network_names_to_compvis_modules(webui.chosen)
    with a1111.session() as host:
        assert host.model is webui.chosen and host.model is not left and not webui.tiling


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
        (lambda webui: setattr(webui.model, "is_sd3", True), "Stable Diffusion 3 .*rectified flow"),
        (lambda webui: setattr(webui.model.model.diffusion_model, "in_channels", 8), "is InstructPix2Pix"),
        (lambda webui: setattr(webui.model.model.diffusion_model, "in_channels", 5), "with depth"),
        (lambda webui: setattr(webui.model.model, "conditioning_key", "crossattn-adm"), "is Stable unCLIP"),
    ],
)
def test_what_cannot_be_merged_on_is_refused(webui: StandIn, change: Callable[[StandIn], None], message: str):
    change(webui)
    with pytest.raises(LoraclrError, match=message), a1111.session():
        pass
    assert not webui.call_queue.queue_lock.locked()


# -- embeddings that LoRAs bundle


def test_bundled_embeddings_are_registered_for_a_while(webui: StandIn, host: a1111.A1111Host):
    database = webui.sd_hijack.model_hijack.embedding_db
    database.word_embeddings["sks"] = installed = object()
    vectors = {
        "bundle_emb.sks.string_to_param.*": torch.zeros(2, WIDTH),
        "bundle_emb.fox.string_to_param.*": torch.ones(2, WIDTH),
        "bundle_emb.wide.string_to_param.*": torch.ones(2, WIDTH + 1),
    }
    with pytest.raises(RuntimeError, match="on purpose"), host.knowing(vectors) as warnings:
        assert set(database.word_embeddings) == {"sks", "fox"}
        [own] = database.word_embeddings["fox"].vec.values()
        assert torch.equal(own, torch.ones(2, WIDTH)), "not another's"
        raise RuntimeError("on purpose")
    assert database.word_embeddings == {"sks": installed}, "the installed one stays, whatever happened"
    assert "An embedding sks is installed" in warnings[0]
    assert "wide was made for other text encoders than those of tiny.safetensors" in warnings[1]


def test_xls_embeddings_have_vectors_for_both_text_encoders(xl: a1111.A1111Host):
    database = sys.modules["modules.sd_hijack"].model_hijack.embedding_db
    both = {f"bundle_emb.fox.{part}": torch.ones(2, WIDTH) for part in ("clip_l", "clip_g")}
    with xl.knowing(both) as warnings:
        assert set(database.word_embeddings["fox"].vec) == {"clip_l", "clip_g"}
    assert warnings == () and database.word_embeddings == {}
    with xl.knowing({"bundle_emb.fox.clip_l": torch.ones(2, WIDTH)}) as warnings:
        assert database.word_embeddings == {}
    assert "fox was made for other text encoders" in warnings[0]


# -- what the last picture left


def test_the_settings_noise_schedule_counts_and_not_the_last_pictures(webui: StandIn):
    webui.model.alphas_cumprod = torch.linspace(0.9, 0.0, 1000)
    with a1111.session() as host:
        torch.testing.assert_close(host.alphas_cumprod, torch.linspace(0.999, 0.005, 1000))


def test_hypertile_is_off_while_a_session_is_open(webui: StandIn):
    """Its tiles are random; as `extensions-builtin/hypertile` marks the modules that it wraps."""
    modules = list(webui.model.modules())[:2]
    for module, enabled in zip(modules, (True, False), strict=True):
        setattr(module, "__webui_hypertile_params", SimpleNamespace(enabled=enabled))

    def tiled() -> list[bool]:
        return [getattr(module, "__webui_hypertile_params").enabled for module in modules]

    with pytest.raises(RuntimeError, match="on purpose"), a1111.session():
        assert tiled() == [False, False]
        raise RuntimeError("on purpose")
    assert tiled() == [True, False]


def test_a_refiner_left_loaded_is_not_what_was_chosen(webui: StandIn):
    assert a1111.loaded_family() is SD1 and a1111.peek().family is SD1
    webui.chosen = Model("SDXL", 4)
    webui.chosen.sd_checkpoint_info = SimpleNamespace(title="chosen", filename="chosen.safetensors")
    assert a1111.loaded_family() is SD1, "control: nobody knows what the settings' name stands for"
    webui.sd_models.checkpoint_aliases["tiny.safetensors"] = webui.chosen.sd_checkpoint_info
    assert a1111.loaded_family() is None and a1111.peek() is None, "it will be loaded when it is needed"
    webui.networks.assign_network_names_to_compvis_modules(webui.chosen)
    with a1111.session() as host:
        assert host.family is SDXL
    assert a1111.loaded_family() is SDXL


def test_fp32_products_are_whole_while_a_session_is_open(webui: StandIn):
    settings = torch.backends.cuda.matmul
    before, settings.allow_tf32 = settings.allow_tf32, True
    try:
        with a1111.session():
            assert not settings.allow_tf32
        assert settings.allow_tf32
    finally:
        settings.allow_tf32 = before


def test_what_weights_cannot_be_added_to_is_refused_at_a_look_too(webui: StandIn):
    webui.sd_unet.current_unet = object()
    with pytest.raises(LoraclrError, match="SD Unet"):
        a1111.peek()
