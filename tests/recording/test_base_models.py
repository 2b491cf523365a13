"""What is said of the base models behind LoRAs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_loraclr.files.lora_files import LoraFile
from lib_loraclr.recording.base_models import base_model_warnings, base_of, checkpoint_model
from lib_loraclr.recording.inputs import InputLora
from lib_loraclr.request.merge_request import Concept

A = {"ss_sd_model_name": "a.safetensors", "ss_sd_model_hash": "aaaa1111", "ss_new_sd_model_hash": "A" * 64}
B = {"ss_sd_model_name": "folder\\b.safetensors", "ss_sd_model_hash": "bbbb2222", "ss_new_sd_model_hash": "b" * 64}


def said(*metadata: Mapping[str, str], path: Path = Path("nowhere"), prediction: str = "epsilon") -> list[str]:
    host = SimpleNamespace(checkpoint="model", checkpoint_path=path, prediction_type=prediction)
    inputs = [
        InputLora(Concept(f"lora{i}.safetensors"), LoraFile(Path(f"lora{i}.safetensors"), meta, {}), {})
        for i, meta in enumerate(metadata)
    ]
    return base_model_warnings(inputs, host)


def test_different_base_models_are_named() -> None:
    (warning,) = said(A, B, {})
    assert "different base models (lora0 on a.safetensors, lora1 on b.safetensors)" in warning


@pytest.mark.parametrize(
    "other",
    [
        A,
        {},
        {**A, "ss_sd_model_name": "renamed.safetensors"},
        {"ss_sd_model_name": "a.safetensors"},
        {"ss_sd_model_hash": "None", "ss_sd_model_name": "None"},
        {"ss_new_sd_model_hash": "a" * 64},
    ],
    ids=["the same", "nothing known", "the same hash", "the same name", "None", "only one hash, in small letters"],
)
def test_the_same_base_model_or_an_unknown_one_says_nothing(other: Mapping[str, str]) -> None:
    assert said(A, other) == []


def test_names_decide_only_where_no_hash_does() -> None:
    assert len(said({"ss_sd_model_name": "a.safetensors"}, {"ss_sd_model_name": "b.safetensors"})) == 1
    assert len(said({"ss_sd_model_hash": "1" * 8}, {"ss_sd_model_hash": "2" * 8})) == 1


def test_another_base_model_than_the_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "loaded.safetensors"
    content = bytes(0x100000) + b"weights" * 20000
    path.write_bytes(content)
    own = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert checkpoint_model(path, "epsilon").hashes == {"old": own}
    assert said({"ss_sd_model_hash": own, "ss_sd_model_name": "its-old-name.safetensors"}, path=path) == []
    (warning,) = said(A, path=path)
    assert warning.startswith("lora0: trained on another base model than loaded.safetensors (a.safetensors)")
    assert said(A, path=tmp_path) == [], "a folder has no hash to compare"


PREDICTIONS = {
    "modelspec": {"modelspec.prediction_type": "v"},
    "kohya's version": {"ss_base_model_version": "sd_v2_v"},
    "kohya's flag": {"ss_v_parameterization": "True"},
}


@pytest.mark.parametrize("metadata", PREDICTIONS.values(), ids=PREDICTIONS)
def test_another_kind_of_prediction_is_named(metadata: Mapping[str, str]) -> None:
    assert base_of(metadata).prediction == "v_prediction"
    (warning,) = said(metadata)
    assert warning.startswith("lora0 was trained on a model with v-prediction, and model is one with noise prediction")
    assert said(metadata, prediction="v_prediction") == []
    assert len(said({"modelspec.prediction_type": "epsilon"}, prediction="v_prediction")) == 1
