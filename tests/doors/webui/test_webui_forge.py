"""The same doors in Forge and in reForge, against their stand-ins: they do not know which host they are in."""

from __future__ import annotations

from pathlib import Path

import pytest
import webui_doors
from test_webui_jobs import files, job
from webui_doors import Doors
from webui_stand_in_forge import ForgeStandIn
from webui_stand_in_reforge import ReforgeStandIn

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import read_lora


@pytest.fixture(params=[ForgeStandIn, ReforgeStandIn], ids=["forge", "reforge"])
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Doors:
    monkeypatch.setattr(webui_doors, "StandIn", request.param)
    made = Doors(tmp_path / "Lora", monkeypatch)
    made.lora("fox", **{"modelspec.trigger_phrase": "sks animal"})
    made.lora("animals/penguin")
    return made


def test_a_merge_is_made_drawn_and_kept(forge: Doors) -> None:
    jobs, before = forge.module("jobs"), files(forge.folder)
    merge = job(forge, "fox", "penguin", draw=True)
    jobs.run(merge, lock_held=False)
    assert merge.state == "finished" and files(forge.folder) == before
    assert jobs.keep(merge, "pair/both").alias == "both"
    assert files(forge.folder) - before == {"pair/both.safetensors", "pair/both.json", "pair/both.png"}
    assert set(read_lora(forge.folder / "pair" / "both.safetensors").layers) <= set(webui_doors.LAYERS)
    assert forge.webui.model.parts_are_forges_own() and not forge.webui.call_queue.queue_lock.locked()


def test_a_merge_is_refined(forge: Doors) -> None:
    few = {"method": "contrastive", "options": {"effort": "balanced", "steps": 2, "batch_size": 2}}
    merge = job(forge, "fox", "penguin", **few)
    forge.module("jobs").run(merge, lock_held=False)
    assert merge.state == "finished" and merge.result.merge.report.refinement["steps"] == 2


def test_what_cannot_be_merged_on_is_said_by_every_door(forge: Doors) -> None:
    forge.webui.model.forge_objects_original.unet.model.storage_dtype = "nf4"
    merge = job(forge, "fox", "penguin")
    with pytest.raises(LoraclrError, match="kept in nf4"):
        forge.module("jobs").run(merge, lock_held=False)
    assert merge.state == "failed" and "kept in nf4" in merge.error
