"""What a merge says beforehand of the prompts that it is asked to record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_loraclr.merge.examination import examine
from lib_loraclr.merge.stage_plan import learning_paths
from lib_loraclr.model.host import Host
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.path_plan import draw_slots
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.request.merge_request import RecordingOptions
from lib_loraclr.request.phrases import Phrases
from tests.small import PROMPTS, request


@pytest.mark.parametrize("written", [4, 5])
def test_prompts_that_would_never_be_asked_are_warned_of(demo: Path, host: Host, written: int) -> None:
    """Against what is asked: of the slots that a merge draws, every prompt of the concept's own."""
    own = tuple(f"a sks animal in place {k}" for k in range(written))
    recording = RecordingOptions(paths=2, steps=3, renoised=2, height=64, width=64)
    asked = request(demo, "fox-face", "pizza", recording=recording)
    asked = replace(asked, concepts=(replace(asked.concepts[0], prompts=own), asked.concepts[1]))
    inputs = load_inputs(asked.concepts, host)
    plan = learning_paths(asked)
    teacher = make_teachers(asked.concepts, PROMPTS)[0]
    slots = draw_slots(plan, Phrases("none", plan.part, templates=PROMPTS.templates, seed=0), [])
    heard = {text for text in own for slot in slots if teacher.prompt(slot).startswith(text)}
    told = [warning for warning in examine(asked, inputs, host).warnings if "are recorded" in warning]
    if len(heard) == written:
        assert told == []
    else:
        assert told == ["fox-face: of 5 prompts only 4 are recorded: raise paths or steps, or give fewer."]
    assert len(heard) == 4, "control: all of four, and four of five"
    averaged = examine(replace(asked, method="average", options={}), inputs, host).warnings
    assert not any("are recorded" in warning for warning in averaged), "nothing is recorded there"
