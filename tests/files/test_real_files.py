"""Kinds of files that people have, small: what each means, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_loraclr.doors.cli.inspect import describe
from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.layer_keys import split_key
from lib_loraclr.files.training import clip_skip, few_steps
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.recording.inputs import InputLora, load_input
from lib_loraclr.recording.reading import recorded_clip_skip, unweighted_prompts
from lib_loraclr.request.merge_request import Concept, RecordingOptions
from lib_loraclr.request.prompts import PromptOptions
from tests import tiny_checkpoints as tiny
from tests.tiny_hosts import Open

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"
D = 64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(**letters: str) -> dict[str, Tensor]:
    """Factors of layers under names that the caller gives, the same for the same letter."""
    tensors = {}
    for number, name in enumerate(letters.values()):
        tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"] = (
            draw(D, 4, seed=number),
            draw(4, D, seed=number + 10),
        )
    return tensors


PLAIN = lora(q=f"{BLOCK}q", k=f"{BLOCK}k", v=f"{BLOCK}v")


@pytest.fixture
def read(tmp_path: Path, host: DiffusersHost) -> Callable[..., InputLora]:
    def read_(
        tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = "file"
    ) -> InputLora:
        path = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, dict(metadata or {}))
        return load_input(Concept(str(path), trigger="word"), host)

    return read_


def assert_equal(found: InputLora, expected: InputLora) -> None:
    assert found.deltas.keys() == expected.deltas.keys() and found.deltas
    for key, factors in expected.deltas.items():
        torch.testing.assert_close(found.deltas[key].dense(), factors.dense())


# -- names


@pytest.mark.parametrize(
    "style",
    [
        "unet.base_model.model.{}.lora_{}.weight",
        "base_model.model.unet.{}.lora_{}.weight",
        "unet._orig_mod.{}.lora_{}.weight",
        "_orig_mod.unet.{}.lora_{}.weight",
        "module.unet.{}.lora_{}.weight",
        "unet.module._orig_mod.base_model.model.{}.lora_{}.weight",
        "unet.{}.lora_{}.my-adapter.weight",
        "unet.{}.lora_{}.v1.5.weight",
        "base_model.model.{}.lora_{}.default_0.weight",
    ],
)
def test_wrappers_and_adapters_names_anywhere_in_a_key_change_nothing(
    read: Callable[..., InputLora], style: str
) -> None:
    side = {"lora_up.weight": "B", "lora_down.weight": "A"}
    wrapped = {}
    for key, tensor in PLAIN.items():
        layer, _, parameter = key.partition(".")
        wrapped[style.format(DOTTED + layer[-1], side[parameter])] = tensor
    assert_equal(read(wrapped), read(PLAIN, name="plain"))


def test_wrappers_in_names_without_dots_change_nothing(read: Callable[..., InputLora]) -> None:
    for wrapper in ("_orig_mod_", "base_model_model_", "module_"):
        wrapped = {key.replace("lora_unet_", f"lora_unet_{wrapper}"): tensor for key, tensor in PLAIN.items()}
        assert_equal(read(wrapped), read(PLAIN, name="plain"))
    inner = {key.replace("_attn1_", "__orig_mod_attn1_"): tensor for key, tensor in PLAIN.items()}
    assert_equal(read(inner), read(PLAIN, name="plain"))


def test_a_word_that_only_looks_like_a_wrapper_stays() -> None:
    assert split_key("lora_unet_submodule_x.alpha") == ("lora_unet_submodule_x", "alpha")
    assert split_key("unet.submodule.x.lora_A.weight") == ("lora_unet_submodule_x", "lora_A.weight")


def test_a_layer_that_is_there_twice_is_refused_with_both_of_its_names(read: Callable[..., InputLora]) -> None:
    compvis = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    with pytest.raises(LoraclrError, match=rf"twice, under two names \({BLOCK}q\S* and {compvis}\S*\): keep one"):
        read({**PLAIN, **lora(q=compvis)})


# -- parts that change what the rest means


def test_magnitudes_are_applied_under_all_of_their_names(read: Callable[..., InputLora]) -> None:
    magnitudes = {letter: draw(D, seed=30 + i).abs() for i, letter in enumerate("qkv")}
    usual = read({**PLAIN, **{f"{BLOCK}{letter}.lora_magnitude_vector": m for letter, m in magnitudes.items()}})
    dotted = BLOCK.removesuffix("_to_") + ".to_"
    names = {
        "kohya": "{0}.lora_magnitude_vector",
        "with the adapter": "{0}.lora_magnitude_vector.my-adapter.weight",
        "dotted at the end": "{1}.lora_magnitude_vector",
        "LyCORIS by rows": "{0}.dora_scale",
    }
    for name, form in names.items():
        found = {form.format(BLOCK + letter, dotted + letter): m for letter, m in magnitudes.items()}
        if name == "LyCORIS by rows":
            found = {key: m[:, None] for key, m in found.items()}
        assert_equal(read({**PLAIN, **found}), usual)
    plain = read(PLAIN, name="plain")
    for key, factors in usual.deltas.items():
        assert (factors.dense() - plain.deltas[key].dense()).norm() > 0.5 * factors.dense().norm(), "control: they act"


def test_magnitudes_of_columns_and_rows_are_told_apart_by_their_shape(
    read: Callable[..., InputLora], host: DiffusersHost
) -> None:
    weight = host.layers()[f"{BLOCK}q"].weight.detach()
    magnitude = draw(D, seed=40).abs()
    factors = {key: tensor for key, tensor in PLAIN.items() if key.startswith(f"{BLOCK}q")}
    changed = weight + factors[f"{BLOCK}q.lora_up.weight"] @ factors[f"{BLOCK}q.lora_down.weight"]
    for shape, axis in (((D, 1), 1), ((1, D), 0)):
        found = read({**factors, f"{BLOCK}q.dora_scale": magnitude.reshape(shape)})
        expected = changed / changed.norm(dim=axis, keepdim=True) * magnitude.reshape(shape) - weight
        error = (found.deltas[f"{BLOCK}q"].dense() - expected).norm() / expected.norm()
        assert error <= max(found.loss, 1e-5) * 1.01
        said = [warning for warning in found.warnings if "WebUI does not read so in a prompt" in warning]
        assert len(said) == (axis == 1)


@pytest.mark.parametrize(
    "name",
    [
        "lora_E",
        "rank_mask",
        "lora_mask",
        "ranknum",
        "dora_magnitude",
        "weight_m_wdecomp.weight",
        "lora_B.bias",
        "magnitude",
    ]
    + ["hada_t1", "rescale", "lora_magnitude.default"],
)
def test_a_part_that_changes_the_rest_and_is_not_known_refuses_the_file(
    read: Callable[..., InputLora], name: str
) -> None:
    for layer in (f"{BLOCK}q", f"unet.{DOTTED}q"):
        tensors = {key.replace(f"{BLOCK}q", layer): tensor for key, tensor in PLAIN.items()}
        key = f"{layer}.{name}"
        with pytest.raises(LoraclrError, match=r"changes what the rest of the layer means .*: leave this file out"):
            read({**tensors, key: torch.ones(4, 1)})
        assert read(tensors).deltas, "control"


def test_both_magnitudes_at_once_and_a_scalar_that_is_not_one_are_refused(read: Callable[..., InputLora]) -> None:
    both = {f"{BLOCK}q.dora_scale": torch.ones(1, D), f"{BLOCK}q.lora_magnitude_vector": torch.ones(D)}
    for extra in (both, {f"{BLOCK}q.scalar": torch.tensor(0.5)}):
        with pytest.raises(LoraclrError, match="changes what the rest of the layer means"):
            read({**PLAIN, **extra})
    harmless = read({**PLAIN, f"{BLOCK}q.scalar": torch.tensor(1.0)})
    assert harmless.left_out == (f"{BLOCK}q.scalar",)


# -- values that nobody uses


def test_an_infinite_alpha_of_a_lokr_of_whole_matrices_does_no_harm(read: Callable[..., InputLora]) -> None:
    """dim 100000 is LyCORIS' way to ask for whole matrices; its alpha overflows in fp16 and is not used."""
    whole = {f"{BLOCK}q.lokr_w1": draw(4, 4), f"{BLOCK}q.lokr_w2": draw(16, 16)}
    one = read({**whole, f"{BLOCK}q.alpha": torch.tensor(1.0)})
    assert_equal(read({**whole, f"{BLOCK}q.alpha": torch.tensor(float("inf")).half()}), one)
    factored = {f"{BLOCK}q.lokr_w1": draw(4, 4), f"{BLOCK}q.lokr_w2_a": draw(16, 2), f"{BLOCK}q.lokr_w2_b": draw(2, 16)}
    for used in (factored, {key: tensor for key, tensor in PLAIN.items() if "to_q" in key}):
        with pytest.raises(LoraclrError, match=rf"NaN or infinity in {BLOCK}q\.alpha"):
            read({**used, f"{BLOCK}q.alpha": torch.tensor(float("inf"))})
    with pytest.raises(LoraclrError, match="NaN or infinity"):
        read({**whole, f"{BLOCK}q.lokr_w2": torch.full((16, 16), torch.nan)})


def test_a_bias_alone_is_listed_under_the_files_own_name(read: Callable[..., InputLora]) -> None:
    """ComfyUI's extraction: the WebUI reads a bias only where the layer is written out whole."""
    extra = {"diffusion_model.time_embed.0.diff_b": torch.ones(256)}
    beside = {f"{BLOCK}q.diff_b": torch.ones(D)}
    found = read({**PLAIN, **extra, **beside})
    assert_equal(found, read(PLAIN, name="plain"))
    listed = read({**PLAIN, **extra, **beside})
    assert set(listed.left_out) == {*extra, *beside}
    said = describe(listed.file)["not understood"]
    assert said.startswith("2 keys: ") and all(key in said for key in (*extra, *beside))


def test_every_key_of_a_file_is_used_or_listed_by_its_own_name(read: Callable[..., InputLora]) -> None:
    odd = {
        "unet.somewhere.else.lora_A.weight": torch.ones(1, 2),
        "unet.somewhere.else.lora_B.weight": torch.ones(2, 1),
        "optimizer.state": torch.ones(1),
        f"{BLOCK}q.scalar": torch.ones(1),
    }
    assert set(read({**PLAIN, **odd}).left_out) == set(odd)


# -- how it was trained


FEW = {
    "lcm-lora-sdv1-5": "LCM",
    "LCM_LoRA_Weights": "LCM",
    "sdxl_lightning_4step_lora": "Lightning",
    "Hyper-SDXL-8steps-lora": "Hyper",
    "Hyper-SD15-1step-lora": "Hyper",
    "sd_xl_turbo_lora_v1": "Turbo",
    "dmd2_sdxl_4step_lora": "DMD",
    "TCD-SDXL-lora": "TCD",
    "hyperrealistic_skin": None,
    "lightning_storm": None,
    "turbo_snail": None,
    "calcmode": None,
    "fox-face": None,
}


@pytest.mark.parametrize(("name", "kind"), FEW.items(), ids=FEW)
def test_loras_of_few_steps_are_told_by_name_and_by_metadata(name: str, kind: str | None) -> None:
    assert few_steps(name, {}) == kind
    assert few_steps("pytorch_lora_weights", {"ss_output_name": name}) == kind


def test_a_lora_of_few_steps_is_advised_against_with_the_reason(read: Callable[..., InputLora]) -> None:
    found = read(PLAIN, name="lcm-lora-sdv1-5")
    [said] = [warning for warning in found.warnings if "LCM" in warning]
    assert "is no concept" in said and "Leave it out" in said and found.deltas
    assert describe(found.file)["advice"] == said
    assert not any("LCM" in warning for warning in read(PLAIN).warnings)


@pytest.mark.parametrize(("said", "skip"), [("2", 2), ("1", 1), ("None", 0), ("", 0), ("x", 0), ("99", 0), ("-1", 0)])
def test_clip_skip_is_a_number_from_1_to_12(said: str, skip: int) -> None:
    assert clip_skip({"ss_clip_skip": said}) == skip


def test_what_the_loras_were_trained_with_is_recorded(read: Callable[..., InputLora], host: DiffusersHost) -> None:
    one, two, three, silent = (
        read(PLAIN, {"ss_clip_skip": skip}, name)
        for skip, name in (("1", "one"), ("2", "two"), ("2", "three"), ("None", "silent"))
    )
    assert recorded_clip_skip(0, [silent], host) == (0, [])
    assert recorded_clip_skip(0, [one, silent], host) == (1, [])
    skip, [said] = recorded_clip_skip(0, [two, silent], host)
    assert skip == 2 and "set Clip skip to 2 when you draw" in said
    skip, [differ, _] = recorded_clip_skip(0, [one, two, three], host)
    assert skip == 2 and "different clip skips (one with 1, two with 2, three with 2): 2 is recorded" in differ
    assert recorded_clip_skip(0, [one, two], host)[0] == 1, "of equally many the one that reads most"
    assert recorded_clip_skip(3, [one], host)[0] == 3, "what a person asks for goes first"


def test_a_setting_that_somebody_else_has_is_said_to_differ(
    read: Callable[..., InputLora], host: DiffusersHost
) -> None:
    class Fixed:
        """The WebUI's host, whose clip skip is the WebUI's."""

        family, name, clip_skip = host.family, "a1111", 1
        skipping = staticmethod(lambda skip: host.skipping(0))

    two = read(PLAIN, {"ss_clip_skip": "2"}, "two")
    _, [said] = recorded_clip_skip(0, [two], Fixed())
    assert "two: trained with clip skip 2, and the WebUI's setting is 1" in said and "Clip skip to 2 before" in said
    Fixed.clip_skip = 2
    assert recorded_clip_skip(0, [two], Fixed()) == (2, [])


def test_a_skipped_layer_is_not_read(host: DiffusersHost) -> None:
    """With its last layer made to do nothing, a text encoder says at 1 what it said at 2; both are normalised."""
    prompts = ["a photo of a cat", ""]
    one = host.encode(prompts).tensors["context"]
    with host.skipping(2):
        two = host.encode(prompts).tensors["context"]
    assert host.clip_skip == 1 and not torch.allclose(one, two, atol=1e-3), "control: it matters"
    model = host.text_encoders[0].model
    last = getattr(model, "text_model", model).encoder.layers[-1]
    handle = last.register_forward_hook(
        lambda _, given, out: (given[0], *out[1:]) if isinstance(out, tuple) else given[0]
    )
    try:
        idle = host.encode(prompts).tensors["context"]
    finally:
        handle.remove()
    torch.testing.assert_close(idle, two)
    with host.skipping(0):
        assert host.encode(prompts).tensors["context"].equal(one)


def test_other_families_are_read_from_the_layer_that_is_theirs(opened: Open, read: Callable[..., InputLora]) -> None:
    """Stable Diffusion 2 has its last layer left out already; in XL the setting changes nothing."""
    two = read(PLAIN, {"ss_clip_skip": "3"}, "three")
    for checkpoint in (tiny.SD2, tiny.SDXL):
        host = opened(checkpoint)
        before = host.encode(["a cat"]).tensors["context"]
        with host.skipping(3):
            assert host.clip_skip == 2 and host.encode(["a cat"]).tensors["context"].equal(before)
        skip, [said] = recorded_clip_skip(0, [two], host)
        assert skip == 0 and f"three was trained with clip skip 3, and {host.family.name} is read from" in said


@pytest.mark.parametrize("skip", [-1, 13])
def test_a_clip_skip_out_of_range_is_refused(skip: int) -> None:
    with pytest.raises(LoraclrError, match=re.escape(f"recording.clip_skip is {skip}: give a number from 0 to 12")):
        RecordingOptions(clip_skip=skip).check()


def test_weights_in_a_requests_prompts_are_said_once(host: DiffusersHost) -> None:
    prompts = PromptOptions(templates=("a {trigger}", "({trigger}:1.2)"), plain=("a [dog]",), quality="(best:1.1)")
    [said] = unweighted_prompts(prompts, host)
    assert "({trigger}:1.2)" in said and "Merge in the WebUI" in said
    assert unweighted_prompts(PromptOptions(quality=r"best \(of all\)"), host) == []
