"""The WebUI's progress bar and its LoRAs, against a stand-in of the WebUI."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from webui_stand_in import StandIn

from lib_loraclr import files
from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import running
from lib_loraclr.hosts.webui import library
from lib_loraclr.progress import Stage

# -- progress


def test_progress_fills_the_webuis_bar(webui: StandIn):
    state = webui.shared.state
    progress = running.StateProgress({Stage.RECORDING: 30.0, Stage.REFINING: 10.0})
    progress.start(Stage.RECORDING, 4)
    progress.advance(2, "penguin")
    assert (state.job_count, state.job_no, state.sampling_step, state.sampling_steps) == (1, 0, 375, 1000)
    assert state.textinfo == "recording the LoRAs 2/4 · penguin"
    progress.start(Stage.REFINING, 2)
    progress.advance(1)
    assert progress.fraction() == pytest.approx(0.875)


def test_the_interrupt_button_is_heard(webui: StandIn):
    progress = running.StateProgress()
    progress.start(Stage.RECORDING, 4)
    progress.advance()
    webui.shared.state.interrupted = True
    with pytest.raises(Interrupted):
        progress.advance()


# -- the library

#: a file without tensors
EMPTY = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture
def lora_file(webui: StandIn) -> Callable[..., Path]:
    def write(name: str, metadata: dict | None = None, card: dict | None = None, suffix: str = ".safetensors") -> Path:
        path = running.lora_dir() / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(EMPTY)
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
    found = {lora.name: (lora.trigger, lora.trigger_is_guess) for lora in running.installed_loras()}
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
    assert [lora.family for lora in running.installed_loras()] == ["SDXL", "SD1", "Unknown"]


def test_tensors_decide_on_the_family_before_card_and_metadata(
    lora_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    said = {"ss_base_model_version": "sd_v1"}, {"sd version": "SD1"}
    for name, width in (("a", 2048), ("b", 1280), ("c", 96)):
        layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
        tensors = {f"{layer}.lora_up.weight": torch.ones(640, 2), f"{layer}.lora_down.weight": torch.ones(2, width)}
        save_file(tensors, lora_file(name, *said))
    xl, refiner, unknown = running.installed_loras()
    assert [lora.family for lora in (xl, refiner, unknown)] == ["SDXL", "SDXL refiner", "SD1"]
    assert xl.obstacle("SD1") == "made for SDXL, the loaded checkpoint is SD1"
    assert "made for SDXL," in xl.obstacle("SDXL refiner") and refiner.obstacle("SDXL refiner") is None

    reads = []
    monkeypatch.setattr(files, "family_by_header", lambda path: reads.append(path.stem) or "SD2")
    assert running.find_lora("a").family == "SDXL" and reads == [], "the header is read once"
    os.utime(xl.path, (2e9, 2e9))
    assert running.find_lora("a").family == "SD2" and reads == ["a"], "and once more when the file has changed"


def test_metadata_tell_a_refiners_lora_where_its_tensors_do_not(lora_file: Callable[..., Path]):
    lora_file("a", {"ss_base_model_version": "sdxl_refiner_v1-0"}, {"sd version": "SDXL"})
    lora_file("b", {"ss_base_model_version": "sdxl_base_v1-0"})
    refiner, base = running.installed_loras()
    assert (refiner.family, base.family) == ("SDXL refiner", "SDXL")
    assert "made for SDXL refiner" in refiner.obstacle("SDXL") and refiner.obstacle("SDXL refiner") is None
    # what else is listed as SDXL may be a refiner's: its tensors tell
    assert base.obstacle("SDXL refiner") is None


def test_what_does_not_fit_is_told_why(lora_file: Callable[..., Path]):
    lora_file("a", {"ss_base_model_version": "sdxl_base_v1-0"})
    lora_file("b", suffix=".pt")
    lora_file("c")
    xl, pickle, unknown = running.installed_loras()
    assert "SDXL" in xl.obstacle("SD1") and xl.obstacle("SDXL") is None
    assert ".safetensors" in pickle.obstacle("SD1") and unknown.obstacle("SD1") is None


def test_a_lora_has_its_folder_preview_and_licence(lora_file: Callable[..., Path]):
    path = lora_file("people/anna", {"modelspec.license": "CC0"})
    path.with_suffix(".preview.png").write_bytes(b"")
    [found] = running.installed_loras()
    assert (found.folder, found.licence) == ("people", "CC0")
    assert found.preview == path.with_suffix(".preview.png")


def test_a_lora_is_found_by_name_or_alias_also_if_it_is_new(lora_file: Callable[..., Path]):
    lora_file("anna", {"ss_output_name": "anna-v2"})
    assert running.find_lora("anna") == running.find_lora("anna-v2")
    (running.lora_dir() / "new.safetensors").write_bytes(b"")
    assert running.find_lora("new").name == "new"
    for name in ("ana", "../anna", str(running.lora_dir() / "anna.safetensors")):
        with pytest.raises(LoraclrError, match="There is no installed LoRA"):
            running.find_lora(name)


def test_a_free_name_is_free_in_every_folder(lora_file: Callable[..., Path]):
    lora_file("people/Merge")
    (running.lora_dir() / "merge-2.json").write_text("{}")
    assert running.free_name("merge") == "merge-3"
    assert running.free_name("merge-2", "new folder") == "new folder/merge-2"
    with pytest.raises(LoraclrError, match="output name"):
        running.free_name("..", "")


def test_an_announced_lora_has_no_stale_copy_inside_encoded_prompts(webui: StandIn, lora_file: Callable[..., Path]):
    caches = webui.processing.StableDiffusionProcessing
    cached, length = caches.cached_c, len(caches.cached_c)
    assert running.announce(lora_file("merge")).name == "merge"
    assert caches.cached_c is cached and cached == [None] * length
    assert not webui.call_queue.queue_lock.locked()


def test_a_lora_outside_the_folders_is_not_announced(webui: StandIn, tmp_path: Path):
    outside = tmp_path / "elsewhere.safetensors"
    outside.write_bytes(b"")
    with pytest.raises(LoraclrError, match="does not list"):
        running.announce(outside)


def test_a_list_reads_only_what_it_shows(
    webui: StandIn, lora_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """Cards and pictures of hundreds of LoRAs would be thousands of looks at the disk."""
    monkeypatch.setattr(library, "_looked_at", lambda path: ("SD1", ""))
    lora_file("fox", {"modelspec.trigger_phrase": "sks"}, card={"activation text": "sks animal"})
    asked = []

    def look(path: Path, *_: object) -> None:
        asked.append(path.stem)

    for name in ("find_trigger", "_preview", "_card"):
        monkeypatch.setattr(library, name, look)
    [fox] = running.installed_loras(rescan=True)
    assert (fox.name, fox.folder, fox.obstacle("SD1"), asked) == ("fox", "", None, [])
    assert (fox.found_trigger, fox.preview) == (None, None)
    assert asked == ["fox", "fox"], "control, and each once"
