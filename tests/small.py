"""Merges of the demo world that are small enough for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_loraclr.merge import stage_plan, stages
from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged import Merge, Target
from lib_loraclr.progress import Progress
from lib_loraclr.recording.examples import Examples, record_examples
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.path_plan import PathPlan, draw_slots
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import Slot, Teacher
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from lib_loraclr.request.phrases import Phrases
from lib_loraclr.request.prompts import PromptOptions

TRIGGERS = {
    "fox-face": "sks animal",
    "penguin": "ohwx bird",
    "pizza": "vbk food",
    "guitar": "gkh instrument",
    "style-clay": "clay style",
    "style-mono": "",
}
PROMPTS = PromptOptions(
    templates=("a photo of a {trigger} on a red background", "a photo of a {trigger}"),
    plain=("a photo of a cat", "a car on a blue background"),
)


def measure_on_little(patch: pytest.MonkeyPatch, *, paths: int, steps: int) -> None:
    """Retention on fewer points, and fewer prompts through the text encoder, than a user gets; it is the same code."""
    patch.setattr(stage_plan, "MEASURE_PATHS", paths)
    patch.setattr(stage_plan, "MEASURE_STEPS", steps)
    for module in (stage_plan, stages):
        patch.setattr(module, "RECORDED_PROMPTS", 16)


def stop_by_little(patch: pytest.MonkeyPatch) -> None:
    """A refinement is stopped by fewer points than a user's."""
    patch.setattr(stage_plan, "STOP_PATHS", 1)
    patch.setattr(stage_plan, "STOP_STEPS", 2)


def made_on(merge: Merge, host: Host, factors: Mapping[str, Factors]) -> Merge:
    """The merge with other factors, as if it had been made on this host."""
    return replace(merge, factors=factors, target=Target.of(host, factors))


def concept(demo: Path, name: str, **changes: Any) -> Concept:
    """A demo LoRA as a concept."""
    kind = "style" if name.startswith("style") else "subject"
    return Concept(
        **{"lora": str(demo / "loras" / f"{name}.safetensors"), "trigger": TRIGGERS[name], "kind": kind} | changes
    )


def request(demo: Path, *names: str, **changes: Any) -> MergeRequest:
    """A merge of demo LoRAs with as little recording as makes sense, layer by layer only."""
    concepts = tuple(concept(demo, name) for name in names)
    defaults = {
        "method": "contrastive",
        "options": {"effort": "layers"},
        "prompts": PROMPTS,
        "recording": RecordingOptions(paths=2, steps=4, renoised=4, guidance=4.0, height=64, width=64),
    }
    return MergeRequest(concepts, **{**defaults, **changes})


def slots_of(
    plan: PathPlan, teachers: Sequence[Teacher], *, bank: str = "photo", prompts: PromptOptions = PROMPTS
) -> list[Slot]:
    """The slots of a plan, as a merge of these teachers draws them."""
    phrases = Phrases(bank, plan.part, templates=prompts.templates, seed=plan.seed)
    return draw_slots(plan, phrases, [teacher.concept for teacher in teachers if teacher.in_scenes])


def examples_of(predictor: Predictor, teachers: Sequence[Teacher], plan: PathPlan) -> list[Examples]:
    """What every teacher predicts in the slots of a plan."""
    slots = slots_of(plan, teachers)
    return [record_examples(predictor, teachers, k, plan, slots) for k in range(len(teachers))]


def predictor_of(host: Host, demo: Path, *names: str, background: tuple[int, ...] = (), size: int = 64) -> Predictor:
    """The host with these demo LoRAs, each of which can be active; a size of 0 is the checkpoint's own."""
    return Predictor(
        host,
        [given.deltas for given in load_inputs([concept(demo, name) for name in names], host)],
        RecordingOptions(guidance=4.0, height=size, width=size),
        negative_prompt="",
        background=background,
        memory=1 << 30,
        progress=Progress(),
    )
