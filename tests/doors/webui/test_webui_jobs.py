"""Merging in the WebUI: the result is held until it is kept or discarded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from webui_doors import SMALL, Doors, doors  # noqa: F401  (a fixture)

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.merge import forecasting
from lib_loraclr.request.merge_request import MergeRequest


def job(doors: Doors, *names: str, draw: bool = False, **changes: Any) -> Any:  # noqa: F811
    """A job that merges these LoRAs."""
    concepts = [{"lora": str(next(doors.folder.rglob(f"{name}.safetensors"))), "trigger": name} for name in names]
    request = MergeRequest.from_dict({**SMALL, **changes, "concepts": concepts})
    return doors.module("jobs").Job(request, names, draw)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_before_keep_and_everything_after(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    before = files(doors.folder)
    merge = job(doors, "fox", "penguin", draw=True)
    jobs.run(merge, lock_held=False)
    assert merge.state == "finished" and files(doors.folder) == before
    assert jobs.waiting() is merge
    kept = jobs.keep(merge, "pair/both")
    assert kept.alias == "both" and merge.state == "kept" and merge.result is None
    assert files(doors.folder) - before == {"pair/both.safetensors", "pair/both.json", "pair/both.png"}
    made = read_lora(doors.folder / "pair" / "both.safetensors")
    assert made.metadata["ss_output_name"] == "both"
    assert set(json.loads(made.metadata["loraclr.inputs"])) == {"fox", "penguin"}


def test_the_sheet_is_kept_beside_the_card_only_where_it_is_asked_for(doors: Doors) -> None:  # noqa: F811
    jobs, settings = doors.module("jobs"), doors.module("settings")
    for asked in (True, False):
        merge = job(doors, "fox", "penguin", draw=True)
        jobs.run(merge, lock_held=False)
        jobs.keep(merge, "both", overwrite=not asked, with_sheet=asked)
        assert (doors.folder / "both.report.png").is_file() is asked, "and none of the merge before is left"
        assert Image.open(doors.folder / "both.png").size == (384, 576)
    assert settings.value("loraclr_sheet") is False
    with pytest.raises(jobs.NameTaken):
        (doors.folder / "new.report.png").write_bytes(b"")
        merge = job(doors, "fox", "penguin")
        jobs.run(merge, lock_held=False)
        jobs.keep(merge, "new")


def test_what_is_held_is_on_the_cpu_and_without_the_inputs_tensors(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin")
    jobs.run(merge, lock_held=False)
    held = merge.result.merge
    assert all(not given.deltas and not given.file.layers for given in held.inputs)
    assert all(f.up.device.type == "cpu" for f in held.factors.values())
    (doors.folder / "fox.safetensors").unlink()  # its hash is known all the same
    jobs.keep(merge, "both")
    assert merge.result is None


def test_the_size_that_is_shown_is_that_of_the_file(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin")
    jobs.run(merge, lock_held=False)
    size = merge.result.size
    jobs.keep(merge, "both")
    header = 8 + int.from_bytes((doors.folder / "both.safetensors").read_bytes()[:8], "little")
    assert (doors.folder / "both.safetensors").stat().st_size - header == size


def test_discard_leaves_nothing(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    before = files(doors.folder)
    merge = job(doors, "fox", "penguin")
    jobs.run(merge, lock_held=False)
    jobs.discard(merge)
    assert merge.result is None and jobs.waiting() is None and files(doors.folder) == before
    for again in (lambda: jobs.discard(merge), lambda: jobs.keep(merge, "both")):
        with pytest.raises(LoraclrError, match="the merge is discarded"):
            again()


def test_a_taken_name_is_refused_unless_it_may_be_replaced(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin")
    jobs.run(merge, lock_held=False)
    before = (doors.folder / "fox.safetensors").read_bytes()
    with pytest.raises(jobs.NameTaken, match="fox exists already"):
        jobs.keep(merge, "fox")
    with pytest.raises(LoraclrError, match="penguin is the name of another LoRA"):
        jobs.keep(merge, "penguin")
    assert (doors.folder / "fox.safetensors").read_bytes() == before and merge.state == "finished"
    jobs.keep(merge, "fox", overwrite=True)
    assert (doors.folder / "fox.safetensors").read_bytes() != before


def checkpoint_job(doors: Doors) -> tuple[Any, Any]:  # noqa: F811
    """The doors' jobs, and a finished merge that is to become a checkpoint."""
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin", save_as="checkpoint")
    jobs.run(merge, lock_held=False)
    return jobs, merge


def test_a_checkpoint_goes_into_the_folder_of_checkpoints_under_a_free_name(doors: Doors) -> None:  # noqa: F811
    base = doors.webui.write_checkpoint()
    loras, before = files(doors.folder), base.read_bytes()
    for wanted, name in (("friends", "friends"), ("friends", "friends-2"), ("tiny", "tiny-2"), ("a/b", "a/b")):
        jobs, merge = checkpoint_job(doors)
        kept = jobs.keep(merge, wanted, overwrite=True)
        assert kept.path == base.parent / f"{name}.safetensors" and kept.title == f"{name}.safetensors"
        assert kept.title in doors.webui.sd_models.checkpoints_list and merge.state == "kept"
    assert files(doors.folder) == loras and base.read_bytes() == before
    old, new = load_file(base), load_file(base.parent / "friends.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert set(old) == set(new) and len(changed) == 3 and "model.diffusion_model.input_blocks.0.0.weight" in changed
    views = doors.module("views")
    assert views.tag(merge) == "" and "checkpoint b" in views.kept_view(merge)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "C:\\out", "a/../../out", "con", ""])
def test_a_checkpoint_s_name_never_leaves_its_folder(doors: Doors, name: str) -> None:  # noqa: F811
    doors.webui.write_checkpoint()
    jobs, merge = checkpoint_job(doors)
    before = files(doors.folder.parent)
    with pytest.raises(LoraclrError, match="output name"):
        jobs.keep(merge, name)
    assert files(doors.folder.parent) == before


def test_a_checkpoint_that_cannot_be_copied_is_refused_before_the_merge(doors: Doors) -> None:  # noqa: F811
    doors.webui.model.sd_checkpoint_info.filename = str(doors.folder.parent / "tiny.ckpt")
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin", save_as="checkpoint")
    with pytest.raises(LoraclrError, match=r"tiny\.ckpt is a pickle"):
        jobs.run(merge, lock_held=False)
    assert merge.state == "failed"


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "C:\\out", "..\\out", "a/../../out", "con", "a:b", ""])
def test_a_name_never_leaves_the_folder(doors: Doors, name: str) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin")
    jobs.run(merge, lock_held=False)
    before = files(doors.folder.parent)
    with pytest.raises(LoraclrError):
        jobs.keep(merge, name)
    assert files(doors.folder.parent) == before


def test_an_interrupted_job_keeps_nothing_and_lets_go_of_the_queue(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    merge = job(doors, "fox", "penguin")
    jobs.interrupt(merge)
    with pytest.raises(Interrupted):
        jobs.run(merge, lock_held=False)
    assert merge.state == "interrupted" and merge.result is None
    assert not doors.webui.call_queue.queue_lock.locked()


def test_an_error_names_the_lora_and_not_its_path(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    (doors.folder / "fox.safetensors").write_bytes(b"no such thing")
    merge = job(doors, "fox", "penguin")
    with pytest.raises(LoraclrError, match="^fox cannot be read"):
        jobs.run(merge, lock_held=False)
    assert merge.state == "failed" and str(doors.folder) not in merge.error


def test_an_estimate_is_set_right_by_a_merge(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """On a computer that takes a second a sample when it is measured, and three in a merge."""
    estimate, jobs, pace = doors.module("estimate"), doors.module("jobs"), doors.module("pace")
    timing, clock = doors.module("clock"), SimpleNamespace(now=0.0, sample=1.0)

    def passed(seconds: float) -> float:
        clock.now += seconds
        return clock.now

    for module in (timing, pace, forecasting):
        # each look takes a moment, so that no stage takes none
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: passed(0.01)))
    unet = doors.webui.model.model.diffusion_model
    unet.register_forward_pre_hook(lambda _, inputs: passed(clock.sample * len(inputs[0])) and None)
    merge = job(doors, "fox", "penguin")
    host = pace.probe(merge.request, wait=True)
    key = pace.key_of(merge.request, host)
    planned = estimate.stages(merge.request, host, draw=False)
    before = estimate.seconds(planned, key)
    assert all(seconds > 0 for seconds in before.values())
    clock.sample = 3.0
    jobs.run(merge, lock_held=False)
    # the plan names the stages that the merge has, in their order
    assert [item.stage for item in planned] == list(merge.progress.seconds)
    taken = sum(merge.progress.seconds.values())
    assert sum(before.values()) == pytest.approx(taken / 3, rel=0.02), "control: it was wrong"
    after = sum(estimate.seconds(planned, key).values())
    assert taken / 1.25 < after < taken * 1.02


def test_no_estimate_while_the_model_is_busy(doors: Doors) -> None:  # noqa: F811
    pace = doors.module("pace")
    doors.webui.shared.state.job = "txt2img"
    assert pace.probe(job(doors, "fox").request, wait=False) is None


@pytest.mark.parametrize(("seconds", "text"), [(3, "a few seconds"), (44, "40 s"), (130, "2 min"), (5400, "1.5 h")])
def test_durations(doors: Doors, seconds: float, text: str) -> None:  # noqa: F811
    assert doors.module("notes").duration(seconds) == text


def test_a_tab_that_is_made_anew_ends_what_ran_before(doors: Doors) -> None:  # noqa: F811
    """Reload UI runs the script again and keeps its modules."""
    start = doors.module("start")
    start.end_former()  # nothing ran yet, and nothing is imported for it
    assert "lib_loraclr.doors.webui.jobs" not in sys.modules
    jobs = doors.module("jobs")
    done, running = job(doors, "fox", "penguin"), job(doors, "fox", "penguin")
    jobs.run(done, lock_held=False)
    with doors.webui.call_queue.queue_lock:  # a picture is being made
        jobs.start(running)
        start.end_former()
    assert running.stop and jobs.find(running.id) is None
    assert jobs.waiting() is done and done.result, "a result that nobody decided on is not lost"
