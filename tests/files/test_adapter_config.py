"""`alpha` that diffusers and PEFT keep outside the tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.merge_request import Concept

K, FC1 = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k", "text_model.encoder.layers.0.mlp.fc1"
K_KEY, FC1_KEY = "lora_unet_" + K.replace(".", "_"), "lora_te1_" + FC1.replace(".", "_")


def write(path: Path, *modules: str, settings: dict | None = None) -> Path:
    tensors = {}
    for module in modules:
        tensors |= {f"{module}.lora_A.weight": torch.randn(4, 8), f"{module}.lora_B.weight": torch.randn(6, 4)}
    metadata = None if settings is None else {"lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, path, metadata)
    return path


def alphas(path: Path) -> dict[str, float | None]:
    layers = read_lora(path).layers
    return {key: float(found["alpha"]) if "alpha" in found else None for key, found in layers.items()}


def test_diffusers_metadata_give_alpha_by_model(tmp_path: Path) -> None:
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.use_rslora": False,
        "text_encoder.lora_alpha": 2,
        "text_encoder.use_rslora": True,
        "unet.alpha_pattern": {},
    }
    path = write(tmp_path / "a.safetensors", f"unet.{K}", f"text_encoder.{FC1}", settings=settings)
    # rsLoRA divides by the root of the rank, the WebUI's rule by the rank
    assert alphas(path) == {K_KEY: 8.0, FC1_KEY: 2 * 4**0.5}


def test_a_pattern_gives_a_layer_an_alpha_of_its_own(tmp_path: Path) -> None:
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_k": 3, "to_q": 5}}
    other = K.replace("to_k", "to_v")
    path = write(tmp_path / "a.safetensors", f"unet.{K}", f"unet.{other}", settings=settings)
    assert alphas(path) == {K_KEY: 3.0, K_KEY.replace("to_k", "to_v"): 8.0}


def test_pefts_folder_gives_alpha_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors", f"base_model.model.{K}")
    assert alphas(path) == {K_KEY: None}, "control: nothing says so yet"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "use_rslora": True}))
    assert alphas(path) == {K_KEY: 32.0}
    renamed = write(tmp_path / "renamed.safetensors", f"base_model.model.{K}")
    assert alphas(renamed) == {K_KEY: 32.0}, "it goes on being PEFT's"
    other = write(tmp_path / "other.safetensors", f"unet.{K}")
    assert alphas(other) == {K_KEY: None}, "the settings are another program's"


@pytest.mark.parametrize("kind", ["hada", "lokr"])
def test_pefts_loha_and_lokr_have_an_alpha_too(tmp_path: Path, kind: str) -> None:
    factors = {
        "hada": {"hada_w1_a": (6, 4), "hada_w1_b": (4, 8), "hada_w2_a": (6, 4), "hada_w2_b": (4, 8)},
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 4), "lokr_w2_b": (4, 4)},
    }[kind]
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{K}.{name}": torch.randn(shape) for name, shape in factors.items()}, path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "alpha": 16}))
    assert alphas(path) == {K_KEY: 16.0}


@pytest.mark.parametrize("pattern", ["mid_block.*to_k", "^mid_block.*to_k", r"attn1\.to_k", "to_[kq]"])
def test_a_pattern_is_a_regular_expression_as_in_peft(tmp_path: Path, pattern: str) -> None:
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {pattern: 3, "o_k": 5}}
    path = write(tmp_path / "a.safetensors", f"unet.{K}", f"unet.{K.replace('to_k', 'to_v')}", settings=settings)
    assert alphas(path) == {K_KEY: 3.0, K_KEY.replace("to_k", "to_v"): 8.0}


@pytest.mark.parametrize("settings", [{"lora_alpha": None}, {"lora_alpha": 8, "alpha_pattern": ["to_k"]}])
def test_settings_of_the_wrong_type_are_named(tmp_path: Path, settings: dict) -> None:
    path = write(tmp_path / "adapter_model.safetensors", f"base_model.model.{K}")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(LoraclrError, match=r"adapter_config\.json cannot be read .*strength"):
        read_lora(path)


def test_settings_that_nothing_needs_are_not_read(tmp_path: Path) -> None:
    tensors = {f"{K_KEY}.lora_down.weight": torch.ones(4, 8), f"{K_KEY}.lora_up.weight": torch.ones(8, 4)}
    tensors[f"{K_KEY}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": "{"})
    assert alphas(tmp_path / "a.safetensors") == {K_KEY: 1.0}


def test_a_file_of_pefts_without_settings_tells_what_is_assumed(tmp_path: Path) -> None:
    path = write(tmp_path / "fox.safetensors", f"base_model.model.{K}", f"base_model.model.{TIME}")
    (warning,) = read_lora(path).warnings
    assert warning.startswith("nothing states the strength of 2 of its layers, so alpha = rank is assumed")
    assert warning.endswith("adapter_config.json: put that beside the file.")
    assert read_lora(write(tmp_path / "a.safetensors", f"unet.{K}")).warnings == (), (
        "diffusers' files are often without"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16}))
    assert read_lora(path).warnings == ()


def test_what_is_assumed_is_shown_with_the_loras_name(tmp_path: Path, host: DiffusersHost) -> None:
    layer = host.layers()[K_KEY]
    d_out, d_in = layer.shape
    factors = {"lora_A": torch.ones(2, d_in), "lora_B": torch.ones(d_out, 2)}
    path = tmp_path / "fox.safetensors"
    save_file({f"base_model.model.{K}.{name}.weight": tensor for name, tensor in factors.items()}, path)
    warnings = load_input(Concept(str(path), trigger="sks"), host).warnings
    assert any(warning.startswith("fox: nothing states the strength of 1 of its layers") for warning in warnings)


TIME = "mid_block.resnets.0.time_emb_proj"


@pytest.mark.parametrize("module", [K, TIME])
@pytest.mark.parametrize(
    "pattern",
    [
        "to_k",
        "k",
        "attn1.to_k",
        "tn1.to_k",
        "proj",
        "attn1",
        r"^mid_block.*to_k",
        r"^attentions.*to_k",
        r"mid_block[.].*to_k",
    ]
    + [r"attentions\.\d+\..*\.(to_k|to_q)", r".*\.[a-z]+_proj", "attn1_to_k"],
)
def test_patterns_are_matched_as_peft_does(tmp_path: Path, pattern: str, module: str) -> None:
    other = pytest.importorskip("peft.utils.other")
    alpha = 3 if other.get_pattern_key([pattern], module) == pattern else 8
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {pattern: 3}}
    path = write(tmp_path / "a.safetensors", f"unet.{module}", settings=settings)
    assert list(alphas(path).values()) == [alpha]


@pytest.mark.parametrize("level", ["", "text_model."])
def test_a_text_encoders_patterns_are_of_either_transformers(tmp_path: Path, level: str) -> None:
    settings = {"text_encoder.lora_alpha": 8, "text_encoder.alpha_pattern": {f"^{level}encoder.layers.0.mlp.fc1": 3}}
    assert alphas(write(tmp_path / "a.safetensors", f"text_encoder.{FC1}", settings=settings)) == {FC1_KEY: 3.0}


def test_an_alpha_in_the_tensors_stands(tmp_path: Path) -> None:
    tensors = {f"{K_KEY}.lora_down.weight": torch.ones(4, 8), f"{K_KEY}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": '{"unet.lora_alpha": 8}'})
    assert alphas(tmp_path / "a.safetensors") == {K_KEY: 1.0}


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    tensors = {f"unet.{K}.lora_A.weight": torch.ones(4, 8), f"unet.{K}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(LoraclrError, match=r"lora_adapter_metadata of .*a\.safetensors cannot be read .*strength"):
        read_lora(tmp_path / "a.safetensors")
