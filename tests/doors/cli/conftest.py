"""Commands that run in a folder of good and bad files, on the demo model."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from runs import MakeMerge, Result, Run, WriteLora

import lib_loraclr.doors.cli.bench_here as bench_command
import lib_loraclr.doors.cli.measure as measure_command
import lib_loraclr.doors.cli.merge as merge_command
from lib_loraclr.doors.cli import main
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.saving import save_merge


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run_(*arguments: str) -> Result:
        try:
            code = main(arguments)
        except SystemExit as stop:  # argparse's own way out
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run_


@pytest.fixture
def loaded(host: DiffusersHost, monkeypatch: pytest.MonkeyPatch) -> DiffusersHost:
    """The commands get the model that is loaded already."""
    for command in (merge_command, measure_command, bench_command):
        monkeypatch.setattr(command, "load_host", lambda arguments: host)
    return host


@pytest.fixture
def folder(tmp_path: Path, write_lora: WriteLora) -> Path:
    """Good and bad files side by side."""
    for name, phrase in (("fox", "sks animal"), ("cat", "ohwx cat")):
        write_lora(tmp_path / f"{name}.safetensors", metadata={"modelspec.trigger_phrase": phrase})
    write_lora(tmp_path / "mute.safetensors")
    fox = (tmp_path / "fox.safetensors").read_bytes()
    (tmp_path / "copy.safetensors").write_bytes(fox)
    (tmp_path / "cut.safetensors").write_bytes(fox[: len(fox) // 2])
    (tmp_path / "liar.safetensors").write_bytes(fox.replace(b'"shape":[64,', b'"shape":[65,', 1))
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({}))
    key = "lora_unet_conv_in"
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        write_lora(tmp_path / f"{name}.safetensors", extra={f"{key}.alpha": torch.tensor(value)}, layers={})
    write_lora(tmp_path / "wide.safetensors", {key: (320, 4, 3, 3)})
    write_lora(tmp_path / "sdxl.safetensors", {"lora_te2_text_model_encoder_layers_0_mlp_fc1": (5120, 1280)})
    write_lora(tmp_path / "alien.safetensors", {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)})
    write_lora(tmp_path / "loha.safetensors", {}, extra={f"{key}.hada_w1_a": torch.ones(2, 2)})
    write_lora(tmp_path / "twin.safetensors", metadata={"modelspec.trigger_phrase": "sks animal"})
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    (tmp_path / "request.json").write_text('{"metod": "ridge"}')
    (tmp_path / "broken.json").write_text('{"concepts": [}')
    (tmp_path / "number.json").write_text('{"concepts": [{"lora": 5}]}')
    (tmp_path / "utf16.json").write_bytes('{"concepts": []}'.encode("utf-16"))
    (tmp_path / "model.safetensors").write_bytes(fox)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "unet").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def recipe(tmp_path: Path, make_merge: MakeMerge) -> tuple[Merge, Path]:
    """A hand-made merge whose inputs are in `inputs`, and its file in another folder."""
    merge = make_merge()
    (path, _) = save_merge(merge, tmp_path / "out" / "zoo.safetensors")
    return merge, path
