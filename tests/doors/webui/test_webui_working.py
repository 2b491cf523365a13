"""What merges in the WebUI keep on the disk, on the stand-in."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import merged, shown, tab

from lib_loraclr.errors import Interrupted
from lib_loraclr.progress import Stage

SHORT = {"method": "contrastive", "effort": "Fast", "option.contrastive.steps": 2, "rank": "4"}
RECORDED = (Stage.RECORDING, Stage.HOLDING_BACK, Stage.TESTING)


@pytest.fixture
def kept(doors: Doors) -> Path:  # noqa: F811
    """The folder, which is used as it is by default."""
    del doors.webui.shared.opts.loraclr_work_limit
    doors.webui.write_checkpoint()
    return doors.folder.parent / "cache" / "loraclr-work"


def evaluations(doors: Doors) -> list[int]:  # noqa: F811
    """How many samples each evaluation of the UNet has; cleared by the test."""
    asked: list[int] = []
    unet = doors.webui.model.model.diffusion_model
    unet.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])) and None)
    return asked


def test_a_merge_that_was_interrupted_goes_on_where_it_was(
    doors: Doors,  # noqa: F811
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs, making = doors.module("jobs"), doors.module("making")
    bound, values = tab(doors, **SHORT)
    asked, start, texts = evaluations(doors), making.JobProgress.start, []

    def stopped(self: Any, stage: Stage, total: int) -> None:
        if stage is Stage.TESTING:
            raise Interrupted
        start(self, stage, total)

    with monkeypatch.context() as patch:
        patch.setattr(making.JobProgress, "start", stopped)
        seen = merged(doors, bound, values)
    assert "Interrupted. Nothing was kept" in seen["view"] and "begun again, goes on from it" in seen["view"]
    assert list(kept.glob("*.loraclr.safetensors")) and not list(doors.folder.glob("fox-*"))
    whole, asked[:] = sum(asked), []

    def told(self: Any, stage: Stage, total: int) -> None:
        texts.append(doors.webui.shared.state.textinfo)
        start(self, stage, total)

    monkeypatch.setattr(making.JobProgress, "start", told)
    again = jobs.find(merged(doors, bound, values)["job"])
    assert again.progress.units_found[Stage.REFINING] == 2 and "goes on from before" in texts[-1]
    went_on, rest = again.result.merge, sum(asked)
    asked[:] = []
    doors.webui.shared.opts.loraclr_work_limit = 0
    afresh = jobs.find(merged(doors, bound, values, again.id)["job"])
    assert not afresh.progress.units_found, "control: with nothing kept nothing is found"
    assert rest < sum(asked) - 0.8 * whole, "little but what was not done before"
    assert all(torch.equal(f.up, went_on.factors[key].up) for key, f in afresh.result.merge.factors.items())
    assert went_on.report.concepts == afresh.result.merge.report.concepts


def test_a_result_that_is_refined_further_finds_there_what_is_not_held_in_memory(doors: Doors, kept: Path) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors, **SHORT)
    first = jobs.find(merged(doors, bound, values)["job"])
    assert not first.result.followed.examples and first.result.followed.before is not None
    more = jobs.find(shown(doors, bound.refine("", "{}", first.id, False, 1.0))["job"])
    for stage in RECORDED:
        assert more.progress.units_found[stage] == {item.stage: item for item in more.progress.planned}[stage].units
    # where it cannot be kept it is held
    doors.webui.shared.opts.loraclr_work_folder = str(doors.folder.parent / "other")
    shutil.rmtree(kept)
    usage = SimpleNamespace(free=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        held = jobs.find(merged(doors, bound, values)["job"]).result
    assert set(held.followed.examples) == set(RECORDED)
    [told] = [text for text in held.merge.report.warnings if "Nothing more is kept in the work folder" in text]
    assert "free some space" in told and str(doors.folder.parent) not in told


def test_a_folder_that_cannot_be_used_is_said_and_the_merge_goes_on(doors: Doors, kept: Path) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    wrong = doors.folder.parent / "note.txt"
    wrong.write_text("")
    doors.webui.shared.opts.loraclr_work_folder = f" {wrong} "
    bound, values = tab(doors, **SHORT)
    seen = merged(doors, bound, values)
    [told] = [text for text in jobs.find(seen["job"]).result.merge.report.warnings if "note.txt" in text]
    assert told.startswith("If a merge is ended nothing is there to go on from: note.txt is no folder")
    assert "Settings &gt; LoRACLR" in seen["view"] and not kept.exists()
    for html in (bound.work(), bound.empty_work()):
        assert "note.txt is no folder" in html and str(doors.folder.parent) not in html


def test_how_much_it_holds_is_shown_and_a_button_empties_it(doors: Doors, kept: Path) -> None:  # noqa: F811
    bound, values = tab(doors, **SHORT)
    assert "kept on the disk: nothing of at most 2.0 GB" in bound.work()
    merged(doors, bound, values)
    mine = kept / "mine.txt"
    mine.write_text("mine")
    assert "nothing" not in bound.work() and " of at most 2.0 GB" in bound.work()
    doors.webui.shared.opts.loraclr_work_limit = 0
    assert "MB; nothing is added (Settings" in bound.work(), "what is there can still be deleted"
    assert "nothing; nothing is added" in bound.empty_work()
    assert list(kept.iterdir()) == [mine]
    assert "Interrupted" in doors.module("views").interrupted_view()
    assert "begun again" not in doors.module("views").interrupted_view(), "where nothing is kept nothing is promised"


def test_the_settings_are_there_and_the_folder_is_not_shown_where_folders_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hidden in (False, True):
        own = Doors(tmp_path / str(hidden) / "Lora", monkeypatch, hide_ui_dir_config=hidden)
        settings = own.module("settings")
        assert settings._OPTIONS["loraclr_work_folder"][3]["visible"] is not hidden
        del own.webui.shared.opts.loraclr_work_limit
        assert settings.value("loraclr_work_limit") == 2048 and settings.value("loraclr_work_folder") == ""
        added: dict[str, Any] = {}
        opts = own.webui.shared.opts
        opts.restricted_opts, opts.add_option = set(), added.__setitem__
        own.webui.shared.OptionInfo = MagicMock(side_effect=lambda *_, **__: MagicMock())
        settings.add()
        assert added.keys() == settings._OPTIONS.keys() and opts.restricted_opts == {"loraclr_work_folder"}
