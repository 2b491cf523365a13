"""How the expected time is measured, and what is learnt from merges."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from webui_doors import SMALL, Doors, doors  # noqa: F401  (a fixture)

from lib_loraclr.errors import LoraclrError
from lib_loraclr.progress import PlannedStage, Stage, Work
from lib_loraclr.request.merge_request import MergeRequest

KEY = ("tiny.safetensors", 64, 64)
WORK = (
    PlannedStage(Stage.RECORDING, 100, Work.EVALUATION, 100.0),
    PlannedStage(Stage.REFINING, 25, Work.BACKWARD, 50.0),
    PlannedStage(Stage.UNET_LAYERS, 5, Work.LAYER, 10.0),
)


def _units(evaluation: float, backward: float, layer: float) -> dict[Work, float]:
    return {Work.EVALUATION: evaluation, Work.BACKWARD: backward, Work.LAYER: layer}


def request() -> MergeRequest:
    return MergeRequest.from_dict({**SMALL, "concepts": [{"lora": "fox.safetensors"}]})


class Clock:
    """A clock that stands still but for what a test adds, and by `step` at each look."""

    def __init__(self, patch: pytest.MonkeyPatch, module) -> None:
        self.now, self.step = 0.0, 0.0
        patch.setattr(module, "time", SimpleNamespace(monotonic=self._look))

    def _look(self) -> float:
        self.now += self.step
        return self.now


def test_what_was_measured_holds_for_a_minute(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pace = doors.module("pace")
    clock = Clock(monkeypatch, pace)
    seen = iter([0.5, 2.0])
    monkeypatch.setattr(pace, "seconds_per_sample", lambda *_: next(seen))
    for wait, expected in ((0.0, 0.5), (59.0, 0.5), (2.0, 2.0)):
        clock.now += wait
        host = pace.probe(request(), wait=True)
        assert pace.seconds_per_unit(pace.key_of(request(), host))[Work.EVALUATION] == expected


def test_while_a_picture_is_made_the_last_measurement_has_to_do(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace = doors.module("pace")
    clock = Clock(monkeypatch, pace)
    pace.probe(request(), wait=True)
    clock.now += 1000
    doors.webui.shared.state.job = "txt2img"
    with doors.webui.call_queue.queue_lock:  # to wait for it would be to wait for ever
        assert pace.probe(request(), wait=True) is not None


def test_a_long_merge_is_believed_a_second_one_halfway_and_a_short_one_hardly(doors: Doors) -> None:  # noqa: F811
    pace = doors.module("pace")
    pace._measured[KEY] = pace._Measured(2.0, 0.0)
    assert pace.seconds_per_unit(KEY) == _units(2.0, 8.0, 0.01) and not pace.timed(KEY)
    pace.learn(KEY, WORK, {Stage.RECORDING: 1.0, Stage.REFINING: 1.0, Stage.UNET_LAYERS: 0.1})
    # a hundredth of what was expected, in so short a time that it says little
    assert pace.seconds_per_unit(KEY)[Work.EVALUATION] > 1.0 and not pace.timed(KEY)
    pace._store().clear()
    pace.learn(KEY, WORK, {Stage.RECORDING: 800.0, Stage.REFINING: 1600.0, Stage.UNET_LAYERS: 800.0})
    first = pace.seconds_per_unit(KEY)
    assert first == pytest.approx(_units(8.0, 32.0, 80.0), rel=0.8) and pace.timed(KEY)
    assert first[Work.EVALUATION] > 6.0
    pace.learn(KEY, WORK, {Stage.RECORDING: 1600.0})  # beside another program
    assert 1.2 < pace.seconds_per_unit(KEY)[Work.EVALUATION] / first[Work.EVALUATION] < 1.7
    assert pace.seconds_per_unit(KEY)[Work.BACKWARD] == first[Work.BACKWARD]


def test_what_was_learnt_outlives_the_webui_and_helps_other_sizes_and_checkpoints(doors: Doors) -> None:  # noqa: F811
    pace = doors.module("pace")
    pace._measured[KEY] = pace._Measured(2.0, 0.0)
    pace.learn(KEY, WORK, {Stage.RECORDING: 300.0})
    pace._measured.clear()  # a new process
    learnt = pace.seconds_per_unit(KEY)[Work.EVALUATION]
    assert not pace.known(KEY) and 1.4 < learnt < 1.5, "of one second, as none was measured"
    pace._measured[KEY] = pace._Measured(0.1, 0.0)
    assert pace.seconds_per_unit(KEY)[Work.EVALUATION] == pytest.approx(0.1 * learnt)
    pace._store()["other.safetensors, 64x64"] = {"evaluation": 9.0}
    assert pace.seconds_per_unit((*KEY[:1], 128, 128))[Work.EVALUATION] == learnt
    assert pace.seconds_per_unit(("third.safetensors", 64, 64))[Work.EVALUATION] in (learnt, 9.0)
    assert not pace.timed((*KEY[:1], 128, 128)), "but how well is not known"


def test_a_refinement_that_ended_early_is_counted_as_it_was(doors: Doors) -> None:  # noqa: F811
    estimate, making, pace = doors.module("estimate"), doors.module("making"), doors.module("pace")
    named = [{"lora": "fox", "trigger": "a"}, {"lora": "cat", "trigger": "b"}]
    asked = MergeRequest.from_dict({**SMALL, "method": "contrastive", "concepts": named, "options": {"steps": 100}})
    host = pace.probe(request(), wait=True)
    planned = estimate.stages(asked, host, draw=True)
    ended = SimpleNamespace(report=SimpleNamespace(refinement={"steps": 40}))
    progress = SimpleNamespace(planned=planned, units_found={})
    done = making.done(progress, ended, drawn=True)
    [(whole, early)] = [pair for pair in zip(planned, done, strict=True) if pair[0] != pair[1]]
    assert (whole.stage, early.stage, early.work) == (Stage.REFINING, Stage.REFINING, Work.BACKWARD)
    assert (whole.units, early.units) == (100, 40) and early.amount == pytest.approx(0.4 * whole.amount)
    cut_short = making.done(progress, ended, drawn=False)
    assert [item.stage for item in done if item not in cut_short] == [Stage.DRAWING]
    # what was found of a merge before was not done now
    progress.units_found = {Stage.REFINING: 30, Stage.RECORDING: planned[1].units}
    went_on = {item.stage: item for item in making.done(progress, ended, drawn=True)}
    assert went_on[Stage.REFINING].amount == pytest.approx(0.1 * whole.amount)
    assert went_on[Stage.RECORDING].amount == 0 < planned[1].amount and planned[1].stage is Stage.RECORDING


def test_times_beside_the_efforts_do_not_wait_for_the_model_again(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each choice of a LoRA asks for them."""
    pace = doors.module("pace")
    clock = Clock(monkeypatch, pace)
    seen = iter([0.5, 2.0])
    monkeypatch.setattr(pace, "seconds_per_sample", lambda *_: next(seen))
    key = pace.key_of(request(), pace.probe(request(), wait=False))
    clock.now += 1000
    pace.probe(request(), wait=False)
    assert pace.seconds_per_unit(key)[Work.EVALUATION] == 0.5
    pace.probe(request(), wait=True)
    assert pace.seconds_per_unit(key)[Work.EVALUATION] == 2.0, "control: Check measures anew"


def test_a_card_too_small_to_measure_is_said(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pace = doors.module("pace")

    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pace, "seconds_per_sample", fail)
    with pytest.raises(LoraclrError, match="graphics memory is too small .* record smaller ones"):
        pace.probe(request(), wait=True)


def test_before_any_merge_what_was_seen_on_such_devices_counts(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pace = doors.module("pace")
    usual = pace.Pace(1.5, 3.0, 0.2)
    monkeypatch.setattr(pace, "usual_pace", lambda device: usual if device.type == "cpu" else None)
    monkeypatch.setattr(pace, "seconds_per_sample", lambda *_: 10.0)
    key = pace.key_of(request(), pace.probe(request(), wait=True))
    assert pace.seconds_per_unit(key) == _units(15.0, 30.0, 0.2)
    pace.learn(key, WORK, {Stage.RECORDING: 8000.0})
    assert pace.seconds_per_unit(key)[Work.EVALUATION] > 60.0
