"""What is other in reForge than in Forge, against its stand-in; the contract of all hosts is asked in `test_contract.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import webui_stand_in_reforge as stand_in
from forge_adapter import Q_SD1, UNET_SD1, delta, predict
from torch import nn
from webui_stand_in_model import WIDTH
from webui_stand_in_reforge import ReforgeStandIn

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts import forge, running
from lib_loraclr.model.families import REFINER, SD1, SD2


@pytest.fixture
def webui(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ReforgeStandIn:
    return ReforgeStandIn(folder).install(monkeypatch)


def _parameters(webui: ReforgeStandIn) -> list[nn.Parameter]:
    objects = webui.model.forge_objects_original
    return [*objects.unet.model.parameters(), *objects.clip.cond_stage_model.parameters()]


def _predicts(webui: ReforgeStandIn, times: type, predicted: type) -> None:
    webui.model.forge_objects_original.unet.model.model_sampling = stand_in.sampling(times, predicted)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_everything_is_left_as_it_was(webui: ReforgeStandIn, error: type[BaseException] | None):
    before, bits = [id(p) for p in _parameters(webui)], [p.clone() for p in _parameters(webui)]
    attention, hijack = webui.ldm_patched["ldm.modules.attention"], webui.sd_hijack.model_hijack
    used = vars(attention).copy()
    try:
        with forge.session() as host:
            assert not any(p.requires_grad for p in _parameters(webui))
            assert attention.optimized_attention is attention.attention_pytorch is attention.optimized_attention_masked
            hijack.comments, hijack.extra_generation_params = ["of a prompt"], {"TI": "of a prompt"}
            with host.apply({Q_SD1: delta()}), host.recomputing():
                predict(host, "a cat")
                if error:
                    raise error
    except KeyboardInterrupt:
        assert error
    assert [id(p) for p in _parameters(webui)] == before and all(p.requires_grad for p in _parameters(webui))
    assert all(torch.equal(one, other) for one, other in zip(bits, _parameters(webui), strict=True))
    assert vars(attention) == used and (hijack.comments, hijack.extra_generation_params) == (["a comment"], {})
    assert not webui.call_queue.queue_lock.locked()


def test_a_lora_that_the_last_prompt_left_in_the_weights_is_taken_out(webui: ReforgeStandIn):
    weight = webui.model.model.diffusion_model.input_blocks[1][1].attn1.to_q.weight
    base = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    with forge.session():
        assert torch.equal(webui.model.model.diffusion_model.input_blocks[1][1].attn1.to_q.weight, base)


def test_the_checkpoint_is_the_one_chosen_at_the_top_left(webui: ReforgeStandIn):
    """As in AUTOMATIC1111's WebUI: a picture may have left its refiner."""
    webui.sd_models.checkpoint_aliases["tiny.safetensors"] = SimpleNamespace(filename="another.safetensors")
    assert forge.peek() is None and forge.loaded_family() is None
    webui.chosen = other = stand_in.ReforgeModel("SDXL refiner", 4)
    with forge.session() as host:
        assert host.model is other and host.family is REFINER
    webui.sd_models.model_data.sd_model = webui.shared.sd_model = None
    webui.chosen = None
    with pytest.raises(LoraclrError, match="no checkpoint loaded: choose one at the top left"), forge.session():
        pass


def test_nothing_is_moved_while_prompts_are_read(webui: ReforgeStandIn):
    with forge.session() as host:
        host.encode(["a cat"])
        assert webui.moves == 0
    webui.model.get_learned_conditioning(webui.prompt_parser.SdConditioning(["a cat"]))
    assert webui.moves == 1, "a picture's prompts load what they need"


def test_velocity_is_told_from_noise_and_other_noise_is_refused(webui: ReforgeStandIn):
    assert forge.peek().prediction_type == "epsilon"
    _predicts(webui, stand_in.ModelSamplingDiscrete, stand_in.V_PREDICTION)
    assert forge.peek().prediction_type == "v_prediction"
    _predicts(webui, stand_in.ModelSamplingContinuousEDM, stand_in.V_PREDICTION)
    with pytest.raises(LoraclrError, match="of the EDM kind"):
        forge.peek()


def test_sd2_which_reforge_takes_for_sd1_is_told_by_its_text_encoder(webui: ReforgeStandIn):
    clip = webui.model.forge_objects_original.clip
    assert forge.loaded_family() is SD1 and webui.model.is_sd1
    clip.cond_stage_model = nn.ModuleDict({"clip_h": clip.cond_stage_model["clip_l"]})
    assert forge.loaded_family() is SD2
    assert Q_SD1 in forge.peek().layers()


def _ztsnr(webui: ReforgeStandIn) -> None:
    webui.model.ztsnr = True


def _setting(webui: ReforgeStandIn) -> None:
    webui.shared.opts.sd_noise_schedule = "Zero Terminal SNR"


@pytest.mark.parametrize("change", [_ztsnr, _setting])
def test_the_schedule_has_zero_terminal_snr_where_pictures_have(
    webui: ReforgeStandIn, change: Callable[[ReforgeStandIn], None]
):
    sigmas = webui.model.forge_objects_original.unet.model.model_sampling.sigmas.clone()
    torch.testing.assert_close(forge.peek().alphas_cumprod, 1 / (sigmas.square() + 1))
    change(webui)
    torch.testing.assert_close(forge.peek().alphas_cumprod, 1 / (4 * sigmas.square() + 1))


def test_bundled_embeddings_are_registered_for_a_while_and_said_to_be_read_by_nobody(webui: ReforgeStandIn):
    database = webui.sd_hijack.model_hijack.embedding_db
    vectors = {f"bundle_emb.{name}.string_to_param.*": torch.ones(2, WIDTH) for name in ("fox", "sks")}
    database.word_embeddings["sks"] = installed = object()
    with forge.session() as host, host.knowing(vectors) as warnings:
        assert set(database.word_embeddings) == {"fox", "sks"}
    assert database.word_embeddings == {"sks": installed}
    assert "An embedding sks is installed" in warnings[0]
    assert warnings[1].startswith("reForge reads no embeddings that a LoRA bundles: the merge is recorded with fox,")


def test_an_announced_lora_is_parsed_and_applied_anew_in_every_checkpoint_held(webui: ReforgeStandIn, folder: Path):
    other = stand_in.ReforgeModel("SD1", 4)
    webui.sd_models.model_data.loaded_sd_models.append(other)
    path = folder / "merge.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert running.announce(path).name == "merge"
    assert webui.parsed == {} and webui.model.current_lora_hash == other.current_lora_hash == "stale"


def test_the_unet_is_given_numbers_of_the_kind_that_it_computes_in(webui: ReforgeStandIn):
    """That is what it is stored in, unless it is cast by hand."""
    kernel = webui.model.forge_objects_original.unet.model
    kernel.manual_cast_dtype = torch.bfloat16
    read = []
    kernel.diffusion_model.register_forward_pre_hook(lambda _, given: read.append(given[0].dtype))
    with forge.session() as host, pytest.raises(RuntimeError, match="[Bb][Ff]loat"), host.apply({UNET_SD1: delta()}):
        predict(host, "a cat")
    assert read == [torch.bfloat16], "the stand-in's UNet casts nothing, so it runs no further"
