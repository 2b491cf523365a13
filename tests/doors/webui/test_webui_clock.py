"""How long a merge has to go, while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)

from lib_loraclr.progress import PlannedStage, Stage, Work

PLAN = (
    PlannedStage(Stage.RECORDING, 100, Work.EVALUATION, 100.0),
    PlannedStage(Stage.UNET_LAYERS, 10, Work.LAYER, 10.0),
    PlannedStage(Stage.REFINING, 20, Work.BACKWARD, 50.0),
    PlannedStage(Stage.TESTING, 100, Work.EVALUATION, 100.0),
)
UNITS = {Work.EVALUATION: 1.0, Work.BACKWARD: 4.0, Work.LAYER: 1.0}


@pytest.fixture
def timed(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    """A merge's progress, `now` of the clock that it looks at, and what the WebUI shows."""
    module, clock = doors.module("clock"), SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    progress = module.TimedProgress(PLAN, UNITS, timed=False)
    return SimpleNamespace(progress=progress, clock=clock, state=doors.webui.shared.state)


def test_what_is_left_is_expected_and_then_goes_by_what_is_seen(timed: Any) -> None:
    clock, progress = timed.progress.clock, timed.progress
    assert clock.remaining(0.0) == 100 + 10 + 200 + 100
    progress.start(Stage.RECORDING, 100)
    for _ in range(50):  # six times as slow as expected
        timed.clock.now += 6.0
        progress.advance(1, "fox")
    # half of this stage, what else runs the model at the same pace, and layers as expected
    assert clock.remaining(timed.clock.now) == pytest.approx(6 * (50 + 200 + 100) + 10, rel=0.03)
    for _ in range(50):
        timed.clock.now += 6.0
        progress.advance(1, "fox")
    progress.start(Stage.UNET_LAYERS, 10)
    assert clock.remaining(timed.clock.now) == pytest.approx(6 * (200 + 100) + 10, rel=0.03)
    for _ in range(10):
        timed.clock.now += 0.1
        progress.advance(1, "lora_unet_in")
    progress.start(Stage.REFINING, 20)
    assert clock.remaining(timed.clock.now) == pytest.approx(6 * (200 + 100), rel=0.03)
    for _ in range(10):  # forward and back is twice as fast as the evaluations let expect
        timed.clock.now += 3 * 50 * 4 / 20
        progress.advance(1)
    assert clock.remaining(timed.clock.now) == pytest.approx(3 * 100 + 6 * 100, rel=0.03)


def test_an_estimate_fifteen_times_too_high_is_mended_in_the_first_tenth(timed: Any) -> None:
    clock, progress = timed.progress.clock, timed.progress
    progress.start(Stage.RECORDING, 100)
    for _ in range(30):
        timed.clock.now += 1 / 15
        progress.advance(1)
    left = 70 / 15 + 10 + 300 / 15
    assert clock.remaining(timed.clock.now) < 1.5 * left, "control: it was 380"


def test_a_long_unit_that_is_under_way_is_no_sign_of_a_slow_computer(timed: Any) -> None:
    clock, progress = timed.progress.clock, timed.progress
    progress.start(Stage.REFINING, 20)  # of 10 seconds each
    before = clock.remaining(0.0)
    for passed in (1.0, 5.0, 9.0):
        assert clock.remaining(passed) == pytest.approx(before - passed, rel=0.02)
    assert clock.remaining(20.0) == pytest.approx(100 + 100 + 10 + 2 * 190, rel=0.05), "control: what is late is seen"
    timed.clock.now = 10.0
    progress.advance(1)
    assert clock.remaining(10.0) == pytest.approx(before - 10, rel=0.02)


def test_the_bar_is_the_share_of_the_time_and_never_shrinks(timed: Any) -> None:
    progress, seen = timed.progress, []
    progress.start(Stage.RECORDING, 100)
    for number in range(100):
        timed.clock.now += 0.1 if number < 50 else 5.0
        progress.advance(1)
        seen.append(progress.fraction())
        assert timed.state.sampling_step == int(progress.fraction() * 1000)
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1] < 1


def test_one_clock_in_peoples_words(timed: Any) -> None:
    progress, state = timed.progress, timed.state
    progress.start(Stage.RECORDING, 100)
    assert state.textinfo == "Recording the LoRAs", "before anything is known nothing is said of the time"
    timed.clock.now += 4.0
    progress.advance(4, "penguin")
    assert state.textinfo == "Recording the LoRAs: penguin · 7 min left"
    progress.start(Stage.UNET_LAYERS, 128)
    progress.advance(5, "lora_unet_down_blocks_0_attentions_0_attn1_to_q")
    assert state.textinfo.startswith("Merging the UNet: layer 6 of 128 · ")
    progress.start(Stage.REFINING, 96)
    progress.advance(31, "step 31, loss 0.1234")
    assert state.textinfo.startswith("Refining: step 32 of 96 · ") and state.textinfo.endswith(" left")
    assert "/" not in state.textinfo and "loss" not in state.textinfo


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [(30, 120, "30 s to 2 min"), (120, 480, "2 to 8 min"), (100, 100, "2 min"), (1, 3, "a few seconds")],
)
def test_a_range_is_said_as_one(doors: Doors, least: float, most: float, text: str) -> None:  # noqa: F811
    assert doors.module("notes").span(least, most) == text


def test_before_a_first_merge_the_estimate_is_a_range(doors: Doors) -> None:  # noqa: F811
    estimate, pace = doors.module("estimate"), doors.module("pace")
    key = ("tiny.safetensors", 64, 64)
    assert estimate.span(60.0, key) == (30.0, 120.0)
    pace._measured[key] = pace._Measured(1.0, 0.0)
    pace.learn(key, PLAN, {Stage.RECORDING: 100.0})
    assert estimate.span(60.0, key) == (60.0, 60.0)


def test_what_was_found_took_no_time_and_says_nothing_of_the_pace(timed: Any) -> None:
    clock, progress = timed.progress.clock, timed.progress
    progress.start(Stage.RECORDING, 100)
    assert "goes on" not in timed.state.textinfo
    progress.found(60, "fox")
    assert clock.remaining(0.0) == 40 + 10 + 200 + 100 and progress.units_found == {Stage.RECORDING: 60}
    assert "Recording the LoRAs: fox · goes on from before" in timed.state.textinfo
    for _ in range(40):  # as fast as was expected
        timed.clock.now += 1.0
        progress.advance(1, "cat")
    progress.start(Stage.UNET_LAYERS, 10)
    assert clock.remaining(timed.clock.now) == pytest.approx(10 + 200 + 100, rel=0.01)
    assert "goes on from before" in timed.state.textinfo
    progress.found(10)
    progress.start(Stage.REFINING, 20)
    progress.found(20)
    assert clock.remaining(timed.clock.now) == pytest.approx(100, rel=0.01)
    # of what was not planned nobody knows how long it takes
    progress.start(Stage.DRAWING, 5)
    progress.found(5)
    assert clock.remaining(timed.clock.now) == pytest.approx(100, rel=0.01)
