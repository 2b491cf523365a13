"""A prompt that is tried on a result before it is kept, on the stand-in."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, let_fail, merged, shown, tab

FIELDS = {
    "prompt": "sks animal on a beach",
    "negative": "",
    "width": 64.0,
    "height": 64.0,
    "pictures": 2.0,
    "steps": 2.0,
    "guidance": 5.0,
    "seed": 7.0,
    "against": "Nothing",
}


def tried(bound: Any, job_id: str, task: str = "task(page-1)", **changes: Any) -> list[str]:
    return bound.attempt(task, job_id, *{**FIELDS, **changes}.values())


def pictures(view: str) -> list[np.ndarray]:
    found = re.findall(r"src='data:image/jpeg;base64,([^']+)'", view)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float) for data in found]


def test_a_prompt_is_drawn_with_a_result_that_nobody_has_kept(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    seen = merged(doors, bound, values)
    assert seen["try_prompt"]["placeholder"] == "a photo of sks animal" and seen["try_width"] == 64
    view, message = tried(bound, seen["job"])
    drawn = pictures(view)
    assert message == "" and len(drawn) == 2 and drawn[0].shape == (64, 64, 3)
    assert "seed 7" in view and "seed 8" in view and "sks animal on a beach" in view
    again = pictures(tried(bound, seen["job"])[0])
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True)), "a seed is a seed"
    assert not list(doors.folder.rglob("fox-penguin*")) and doors.module("jobs").find(seen["job"]).state == "finished"
    assert "a photo of sks animal (" in tried(bound, seen["job"], prompt=" ")[0], (
        "the proposed one where none is written"
    )
    seeds = [re.search(r"seed (\d+)", tried(bound, seen["job"], seed=-1.0)[0])[1] for _ in range(2)]
    assert seeds[0] != seeds[1], "-1 is another each time"


def test_it_is_laid_beside_the_base_all_tags_and_another_lora(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors, method="weighted_sum")
    job_id = merged(doors, bound, values)["job"]
    differences = {}
    for against in ("The base model", "All tags in one prompt", "fox"):
        view, message = tried(bound, job_id, pictures=1.0, against=against)
        other, own = pictures(view)
        assert message == "" and view.count("type='range'") == 1 and f"right: {against}" in view
        differences[against] = np.abs(other - own).mean()
    # a weighted sum is what all tags together give
    assert differences["All tags in one prompt"] < min(differences["The base model"], differences["fox"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "<lora:fox:1> a fox"}, "has a tag in it (&lt;lora:fox:1&gt;)"),
        ({"width": 100.0}, "width of the pictures is 100"),
        ({"steps": None}, "The number of steps is None"),
        ({"against": "nobody"}, "no installed LoRA &#x27;nobody&#x27;"),
        ({"against": "big"}, "big cannot be merged: made for SDXL"),
    ],
)
def test_what_cannot_be_tried_is_said_and_the_result_stays(
    doors: Doors,  # noqa: F811
    changes: dict[str, Any],
    told: str,
) -> None:
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    view, message = tried(bound, job_id, **changes)
    assert view == "" and told in message and "loraclr-error" in message
    assert doors.module("jobs").find(job_id).state == "finished"


def test_what_was_merged_here_is_offered_to_compare_with(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    first = merged(doors, bound, values)
    assert first["against"]["choices"] == ["Nothing", "The base model", "All tags in one prompt"]
    bound.keep(first["job"], "former", "")
    second = merged(doors, bound, values)
    # the stand-in reads no metadata of files that are written: as the WebUI has them
    doors.webui.networks.available_networks["former"].metadata = {"loraclr.request": "{}"}
    third = merged(doors, bound, values, second["job"])
    assert third["against"]["choices"][-1] == "former"
    view, message = tried(bound, third["job"], pictures=1.0, against="former")
    assert message == "" and "right: former" in view


def test_what_is_no_result_any_more_or_of_another_checkpoint_is_not_tried(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    checkpoint = doors.webui.model.sd_checkpoint_info
    before = dict(vars(checkpoint))
    vars(checkpoint).update(title="other", filename=before["filename"].replace("tiny", "other"))
    assert "was made on tiny.safetensors [0123456789], and other is chosen" in tried(bound, job_id)[1]
    vars(checkpoint).update(before, title="tiny.safetensors [4711]")
    assert tried(bound, job_id)[1] == "", "the same, whose hash is known by now"
    bound.discard(job_id)
    assert "There is no result to try: the merge is discarded" in tried(bound, job_id)[1]
    assert "no result any more" in tried(bound, "nobody")[1]


def test_interrupt_stops_a_trial_and_leaves_the_result(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    bound.interrupt("task(page-waits)")
    assert "Interrupted" in tried(bound, job_id, "task(page-waits)")[1], "before it began"
    unet = doors.webui.model.model.diffusion_model
    calls: list[int] = []

    def pressed(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            bound.interrupt("task(page-runs)")

    hook = unet.register_forward_pre_hook(pressed)
    assert "Interrupted" in tried(bound, job_id, "task(page-runs)", steps=9.0)[1]
    hook.remove()
    assert len(calls) < 9, "and not after all of its steps"
    assert tried(bound, job_id)[1] == "" and doors.module("jobs").find(job_id).state == "finished"


def test_an_error_nobody_foresaw_is_said(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    let_fail(doors, monkeypatch, "trying", "draw_trial", RuntimeError("CUDA error"))
    assert "RuntimeError: CUDA error" in tried(bound, job_id)[1]
    assert doors.reported == ["LoRACLR: the prompt could not be tried"]
    let_fail(doors, monkeypatch, "trying", "draw_trial", MemoryError())
    assert "draw smaller pictures, or fewer" in tried(bound, job_id)[1]


def test_a_new_result_takes_the_pictures_of_the_former_away(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    job_id = merged(doors, bound, values)["job"]
    assert merged(doors, bound, values, job_id)["tried"] == ""
    assert shown(doors, bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values))["tried"] == ""
