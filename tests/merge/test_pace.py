"""What is expected of a device before anything was merged on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lib_loraclr.merge import Pace, keep_pace, usual_pace
from lib_loraclr.merge import pace as module
from lib_loraclr.progress import Work


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "paces.json"
    path.write_text("{}")
    monkeypatch.setattr(module, "SEEN", path)
    return path


def test_a_pace_and_what_a_merge_took_are_each_others_inverse() -> None:
    pace = Pace(1.5, 3.0, 0.2)
    each = pace.seconds(10.0)
    assert each == {Work.EVALUATION: 15.0, Work.BACKWARD: 30.0, Work.LAYER: 0.2}
    assert Pace.of(each, 10.0) == pace
    assert Pace.of({Work.EVALUATION: 15.0}, 10.0) == Pace(evaluation=1.5)


def test_what_was_seen_on_a_device_is_expected_of_its_kind_and_of_no_other(seen: Path) -> None:
    assert usual_pace("cuda") == Pace()
    keep_pace("cuda", Pace(1.23456, 3.0, 0.001), "a card")
    assert usual_pace(torch.device("cuda:1")) == Pace(1.23, 3.0, 0.001)
    assert usual_pace("cpu") == Pace()
    keep_pace("cpu", Pace(2.0), "a CPU")
    assert usual_pace("cuda") == Pace(1.23, 3.0, 0.001) and usual_pace("cpu") == Pace(2.0)
    assert json.loads(seen.read_text())["cuda"]["seen on"] == "a card"


def test_what_is_shipped_can_be_read() -> None:
    for device in json.loads(module.SEEN.read_text("utf-8")):
        pace = usual_pace(device)
        assert 0.5 < pace.evaluation < 5 and 1 < pace.backward < 20 and 0 < pace.layer < 5
