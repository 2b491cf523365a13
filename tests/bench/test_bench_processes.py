"""A merge by several processes, and the table of what each of its stages took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import processes
from bench.__main__ import main
from lib_loraclr.progress import Stage
from lib_loraclr.request.merge_request import RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.tiny_hosts import Open, random_merge

RECORDING, REFINING = Stage.RECORDING.value, Stage.REFINING.value


def run(recording: float, refining: float, *, beside: float = 2.0, busy: float = 1.0) -> dict[str, Any]:
    walls = {RECORDING: recording, REFINING: refining}
    stages = {name: {"wall": wall, "processor": busy * wall} for name, wall in walls.items()}
    return {"stages": stages, "wall": recording + refining + beside, "processor": 100.0}


def test_what_does_not_divide_is_told_by_stage() -> None:
    """Recording divides; half of what the refinement takes does not, and the first process waits for a quarter of it."""
    measured = {1: [run(20, 40)], 2: [run(10, 30, busy=0.75)], 4: [run(5, 25)]}
    found = {row[0]: row[1:] for row in processes.rows(measured)}
    assert found[RECORDING] == ["20.0", "10.0", "2.00", "2.5", "0.0", "5.0", "4.00", "0.0", "0.0"]
    assert found[REFINING] == ["40.0", "30.0", "1.33", "7.5", "20.0", "25.0", "1.60", "0.0", "20.0"]
    assert found[processes.BEGINNING] == ["2.0", "2.0", "1.00", "", "2.0", "2.0", "1.00", "", "2.0"]
    assert found["**in all**"][:3] == ["62.0", "42.0", "1.48"] and found["**in all**"][4] == "22.0"


def test_a_ratio_is_of_two_that_were_measured_in_the_same_minutes() -> None:
    """In the second turn everything took three times as long."""
    measured = {1: [run(20, 40), run(60, 120), run(20, 40)], 2: [run(10, 20), run(30, 60), run(10, 20)]}
    found = {row[0]: row[1:] for row in processes.rows(measured)}
    assert found[RECORDING][2] == found[REFINING][2] == "2.00"


def test_two_processes_do_a_merge_and_say_what_each_stage_took(opened: Open, tmp_path: Path) -> None:
    host = opened(tiny.SD1)
    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    request = random_merge(
        tmp_path, host, 1, 2, options={"steps": 1, "batch_size": 2, "scenes": 2}, recording=recording
    )
    found = processes.together(2, host.checkpoint_path, replace(request, memory_mb=64))
    assert {stage.value for stage in (Stage.RECORDING, Stage.UNET_LAYERS, Stage.REFINING, Stage.MEASURING)} <= set(
        found["stages"]
    )
    spent = sum(own["wall"] for own in found["stages"].values())
    assert 0 < spent < found["wall"]


def test_every_number_is_measured_in_turn_and_what_is_known_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def together(count: int, checkpoint: Path, request: Any) -> dict[str, Any]:
        asked.append((count, request.options["steps"], request.recording.paths))
        return run(20 / count, 40)

    monkeypatch.setattr(processes, "together", together)
    whole = ["--results", str(tmp_path), "processes", "--counts", "2", "--steps", "3", "--paths", "4"]
    main(whole)
    main(whole)
    assert asked == [(1, 3, 4), (2, 3, 4)] * 2
    text = (tmp_path / "processes.md").read_text("utf-8")
    assert "| 1 process, s | 2, s | times as fast |" in text and "fox-face and penguin, 3 steps" in text
    assert f"| {RECORDING} | 20.0 | 10.0 | 2.00 |" in text and "100 by 1, 100 by 2" in text
    assert text in capsys.readouterr().out
