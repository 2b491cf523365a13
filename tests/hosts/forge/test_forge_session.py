"""A session on the checkpoint of Forge's stand-in: what it leaves as it was, and what it does not take as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forge_adapter import Q_SD1, UNET_SD1, delta, predict
from torch import nn
from webui_stand_in_forge import Engine, ForgeStandIn
from webui_stand_in_model import WIDTH
from webui_stand_in_reforge import ReforgeStandIn

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import forge, running
from lib_loraclr.model.families import SD1


def unet_of(webui: ForgeStandIn) -> nn.Module:
    return webui.model.forge_objects_original.unet.model.diffusion_model


def modules_of(webui: ForgeStandIn) -> list[nn.Module]:
    objects = webui.model.forge_objects_original
    return [*objects.unet.model.modules(), *objects.clip.cond_stage_model.modules()]


def state(webui: ForgeStandIn) -> list[Any]:
    """Every parameter by its identity, and what hooks and shadows the modules have."""
    return [
        (
            id(parameter),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            {"weight", "forward"} & set(vars(module)),
        )
        for module in modules_of(webui)
        for parameter in (*module._parameters.values(), None)
    ]


def test_the_session_is_a_job_in_the_queue(forge_webui: ForgeStandIn):
    lock, shown = forge_webui.call_queue.queue_lock, forge_webui.shared.state
    with forge.session(job="merging"):
        assert lock.locked() and shown.job == "merging"
    assert not lock.locked() and shown.job == ""
    with lock, forge.session(lock_held=True):
        assert shown.job == ""


@pytest.mark.parametrize("error", [None, LoraclrError, Interrupted, KeyboardInterrupt])
def test_everything_is_left_as_it_was(forge_webui: ForgeStandIn, error: type[BaseException] | None):
    before, bits = state(forge_webui), [p.clone() for m in modules_of(forge_webui) for p in m.parameters(recurse=False)]
    blocks, memory = forge_webui.backend["nn.unet"], forge_webui.backend["memory_management"]
    attention, free = blocks.attention_function, memory.get_free_memory
    forge_webui.model.readers[0].clip_skip = 3
    try:
        with forge.session() as host:
            assert not any(p.requires_grad or p.is_inference() for m in modules_of(forge_webui) for p in m.parameters())
            predict(host, "a cat")
            assert forge_webui.notes["TI"] == "written by a prompt"
            if error:
                with host.apply({Q_SD1: delta()}), host.recomputing():
                    raise error
    except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001  (whatever it was, nothing may be left)
        assert isinstance(raised, error)
    assert state(forge_webui) == before and forge_webui.model.parts_are_forges_own()
    after = [p for m in modules_of(forge_webui) for p in m.parameters(recurse=False)]
    assert all(torch.equal(one, other) for one, other in zip(bits, after, strict=True))
    assert blocks.attention_function is attention and memory.get_free_memory is free
    assert forge_webui.notes == {"TI": "of a picture"} and forge_webui.model.readers[0].clip_skip == 3
    assert not forge_webui.call_queue.queue_lock.locked()


def test_parameters_keep_their_memory_while_they_are_thawed(forge_webui: ForgeStandIn):
    before = {id(m): p.data_ptr() for m in modules_of(forge_webui) for p in m.parameters(recurse=False)}
    with forge.session():
        assert before == {id(m): p.data_ptr() for m in modules_of(forge_webui) for p in m.parameters(recurse=False)}


def test_without_thawing_nothing_can_be_trained(forge_webui: ForgeStandIn):
    """The control: the stand-in's parameters are such as autograd refuses."""
    layer = unet_of(forge_webui).input_blocks[1][1].attn1.to_q
    with pytest.raises(RuntimeError, match="[Ii]nference tensors cannot be saved for backward"):
        layer(torch.randn(1, WIDTH, requires_grad=True))


def test_a_lora_that_the_last_prompt_left_in_the_weights_is_taken_out(forge_webui: ForgeStandIn):
    layer = unet_of(forge_webui).input_blocks[1][1].attn1.to_q
    base = layer.weight.clone()
    with torch.inference_mode():
        layer.weight.add_(1)
    forge_webui.networks.loaded_networks.append("penguin")
    with forge.session():
        assert torch.equal(layer.weight, base) and forge_webui.networks.loaded_networks == []


def test_a_checkpoint_that_is_chosen_and_not_loaded_is_loaded(forge_webui: ForgeStandIn):
    """Forge loads none before the first picture, and another one for a refiner."""
    data = forge_webui.sd_models.model_data
    data.sd_model, data.forge_hash = SimpleNamespace(cond_stage_model=None), ""
    assert forge.peek() is None and forge.loaded_family() is None
    with forge.session() as host:
        assert host.model is forge_webui.engine
    assert forge.peek().family is SD1 and forge.loaded_family() is SD1


@pytest.mark.parametrize("program", [ForgeStandIn, ReforgeStandIn])
def test_the_last_pictures_tiling_does_not_count(program: type, folder: Path, monkeypatch: pytest.MonkeyPatch):
    webui = program(folder).install(monkeypatch)
    webui.model.tiling_enabled = True
    with forge.session():
        assert not webui.model.tiling_enabled


def test_a_peek_changes_nothing(forge_webui: ForgeStandIn):
    before = state(forge_webui)
    assert forge.peek().layers().keys() >= {UNET_SD1}
    assert state(forge_webui) == before and forge_webui.loaded == []


def test_a_picture_is_decoded_with_forges_own_parameters_in_place(forge_webui: ForgeStandIn):
    with forge.session() as host:
        loads = len(forge_webui.loaded)
        host.decode(torch.zeros(1, 4, 4, 4))
        assert len(forge_webui.loaded) == loads + 1, "what the VAE may have pushed out is loaded again"
        factors = delta(trained=True)
        with host.apply({UNET_SD1: factors}):
            predict(host, "a cat").sum().backward()
        assert factors.up.grad.abs().max() > 0


def test_an_attention_without_a_backward_pass_is_replaced_for_the_session(forge_webui: ForgeStandIn):
    blocks = forge_webui.backend["nn.unet"]
    with forge.session():
        assert blocks.attention_function is forge_webui.backend["attention"].attention_pytorch
    assert blocks.attention_function.__name__ == "attention_sage"
    blocks.attention_function = basic = lambda: None
    with forge.session():
        assert blocks.attention_function is basic


def test_the_settings_clip_skip_counts_while_a_session_is_open(forge_webui: ForgeStandIn):
    forge_webui.shared.opts.CLIP_stop_at_last_layers = 2
    with forge.session() as host:
        assert host.clip_skip == 2 and forge_webui.model.readers[0].clip_skip == 2
        with host.skipping(3):
            assert host.clip_skip == 2
    assert forge_webui.model.readers[0].clip_skip == 1


def _nothing_chosen(webui: ForgeStandIn) -> None:
    webui.sd_models.model_data.forge_loading_parameters["checkpoint_info"] = None


def _another_family(webui: ForgeStandIn) -> None:
    webui.model.__class__ = type("Flux", (Engine,), {})
    webui.model.is_sd1 = False


def _store(webui: ForgeStandIn, kind: Any) -> None:
    webui.model.forge_objects_original.unet.model.storage_dtype = kind


def _compile(webui: ForgeStandIn) -> None:
    unet_of(webui).compiled = type("OptimizedModule", (nn.Module,), {})()


def _edm(webui: ForgeStandIn) -> None:
    del webui.model.forge_objects_original.unet.model.predictor.alphas_cumprod


def _elsewhere(webui: ForgeStandIn) -> None:
    webui.model.forge_objects_original.clip.patcher.load_device = torch.device("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nothing_chosen, r"cannot load the checkpoint .*You do not have any model!.*choose another"),
        (_another_family, r"tiny.safetensors .* is a Flux model, .*load a Stable Diffusion 1.x, 2.x or XL"),
        (lambda webui: _store(webui, "nf4"), "kept in nf4, .*Diffusion in Low Bits"),
        (lambda webui: _store(webui, torch.float8_e4m3fn), "kept in float8_e4m3fn, .*fp16 or bf16"),
        (_compile, r"The UNet is compiled \(torch.compile\), .*switch that off"),
        (_edm, r"is a model of the EDM kind \(Playground 2.5, CosXL\), .*predicts noise or velocities"),
        (_elsewhere, "text encoder on meta and the UNet on cpu, .*--always-gpu"),
        (lambda webui: setattr(unet_of(webui), "in_channels", 8), "is InstructPix2Pix"),
    ],
)
def test_what_cannot_be_merged_on_is_refused_before_anything_runs(
    forge_webui: ForgeStandIn, change: Callable[[ForgeStandIn], None], message: str
):
    change(forge_webui)
    with pytest.raises(LoraclrError, match=message), forge.session():
        pass
    assert not forge_webui.call_queue.queue_lock.locked()
    assert all(not reader.calls for reader in forge_webui.engine.readers)


def test_what_cannot_be_merged_on_is_refused_at_a_look_too(forge_webui: ForgeStandIn):
    _store(forge_webui, "gguf")
    with pytest.raises(LoraclrError, match="kept in gguf"):
        forge.peek()
    assert forge.loaded_family() is SD1


# -- embeddings, and files that are overwritten


def test_bundled_embeddings_are_registered_for_a_while(forge_host: forge.ForgeHost):
    [database] = [reader.embeddings for reader in forge_host.model.readers]
    database.word_embeddings["sks"] = installed = object()
    vectors = {
        "bundle_emb.sks.string_to_param.*": torch.zeros(2, WIDTH),
        "bundle_emb.fox.string_to_param.*": torch.ones(2, WIDTH),
        "bundle_emb.wide.string_to_param.*": torch.ones(2, WIDTH + 1),
    }
    plain = forge_host.encode(["a fox"]).tensors["context"]
    with pytest.raises(RuntimeError, match="on purpose"), forge_host.knowing(vectors) as warnings:
        assert set(database.word_embeddings) == {"sks", "fox"}
        assert not torch.equal(forge_host.encode(["a fox"]).tensors["context"], plain)
        raise RuntimeError("on purpose")
    assert database.word_embeddings == {"sks": installed}, "the installed one stays, whatever happened"
    assert "An embedding sks is installed" in warnings[0]
    assert "wide was made for other text encoders than those of tiny.safetensors" in warnings[1]


def test_xls_embeddings_have_vectors_for_both_text_encoders(forge_xl: forge.ForgeHost):
    databases = [reader.embeddings.word_embeddings for reader in forge_xl.model.readers]
    both = {f"bundle_emb.fox.{part}": torch.ones(2, WIDTH) for part in ("clip_l", "clip_g")}
    with forge_xl.knowing(both) as warnings:
        assert all(set(known["fox"].vec) == {"clip_l", "clip_g"} for known in databases)
    assert databases == [{}, {}]
    assert warnings == (
        "Forge reads no embeddings that a LoRA bundles: the merge is recorded with fox, and prompts here call it only when "
        "it is a file of its own in the embeddings folder.",
    )
    with forge_xl.knowing({"bundle_emb.fox.clip_l": torch.ones(2, WIDTH)}) as warnings:
        assert databases == [{}, {}]
    assert "fox was made for other text encoders" in warnings[0]


def test_a_file_with_more_embeddings_than_forge_lets_pass_is_told(forge_host: forge.ForgeHost):
    many = {f"bundle_emb.e{i}.string_to_param.*": torch.ones(1, WIDTH) for i in range(13)}
    with forge_host.knowing(many) as warnings:
        assert "drops a LoRA whole in which more than 12" in warnings[-1] and "carries 13 tensors" in warnings[-1]
    with forge_host.knowing(dict(list(many.items())[:12])) as warnings:
        assert not any("drops a LoRA whole" in warning for warning in warnings)


def test_an_announced_lora_is_parsed_and_applied_anew(forge_webui: ForgeStandIn, folder: Path):
    path = folder / "merge.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert running.announce(path).name == "merge"
    objects = forge_webui.model.forge_objects_original
    assert forge_webui.notes["parsed"] == "forgotten" and forge_webui.model.current_lora_hash == "stale"
    assert [p.lora_loader.loaded_hash for p in (objects.unet, objects.clip.patcher)] == ["stale", "stale"]


def test_a_lora_is_announced_where_no_checkpoint_is_loaded_yet(forge_webui: ForgeStandIn, folder: Path):
    forge_webui.sd_models.model_data.sd_model = SimpleNamespace(cond_stage_model=None)
    del forge_webui.networks.load_lora_state_dict.cache_clear  # Forge Neo keeps no parsed files
    path = folder / "merge.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert running.announce(path).name == "merge"
