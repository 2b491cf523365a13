"""What the tests of the tab share: what the browser and gradio hand over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from webui_doors import SMALL, Doors

from lib_loraclr.request.merge_request import RecordingOptions
from lib_loraclr.request.options import schema
from lib_loraclr.request.prompts import PromptOptions
from lib_loraclr.solving.methods import METHODS

#: what the browser sends of the table
TABLE = {
    "taken": "",
    "rows": [
        {"lora": "fox", "te_weight": "0.5", "unet_weight": "0.75", "trigger": " sks animal ", "kind": "subject"},
        {
            "lora": "penguin",
            "te_weight": "1",
            "unet_weight": "1",
            "trigger": "bird",
            "importance": "2",
            "prompts": "a\n",
        },
    ],
}
CHOSEN = [row["lora"] for row in TABLE["rows"]]


def fields(**changes: Any) -> dict[str, Any]:
    """The tab's fields, by name, as gradio hands them over (numbers as floats)."""
    defaults, recording = PromptOptions(), RecordingOptions()
    found: dict[str, Any] = {"effort": "layers", "method": "average", "rank": "auto", "kept": 0.995}
    found |= {"save_as": "lora", "precision": "fp16"}
    for name, method in METHODS.items():
        found |= {f"option.{name}.{o.name}": o.default for o in schema(method.options) if o.name != "effort"}
    found |= {"templates": "\n".join(defaults.templates) + "\n\n", "plain": "\n".join(defaults.plain)}
    found |= {"bank": defaults.bank, "phrases": ""}
    found |= {"quality": "", "negative": " ugly ", "pair": "", "seed": 3.0, "memory_mb": 64.0}
    found |= {name: float(getattr(recording, name)) for name in ("paths", "steps", "guidance", "height", "width")}
    found |= {name: float(value) for name, value in SMALL["recording"].items()}
    return {**found, **changes}


def tab(doors: Doors, **changes: Any) -> tuple[Any, list[Any]]:  # noqa: F811
    values = fields(**changes)
    return doors.module("actions").Actions(list(values)), list(values.values())


def let_fail(doors: Doors, patch: pytest.MonkeyPatch, module: str, name: str, error: Exception) -> None:
    """Make a function that a module of the doors calls raise."""

    def fail(*_: object, **__: object) -> None:
        raise error

    patch.setattr(doors.module(module), name, fail)


def shown(doors: Doors, values: list[Any]) -> dict[str, Any]:  # noqa: F811
    """What stands in the result column, by name."""
    return dict(zip(doors.module("notes").SHOWN, values, strict=True))


def merged(doors: Doors, bound: Any, values: list[Any], before: str = "", *, draw: bool = False) -> dict[str, Any]:  # noqa: F811
    """What the column shows after a merge of the table."""
    return shown(doors, bound.merge("", json.dumps(TABLE), CHOSEN, before, draw, *values))


def restored(doors: Doors, bound: Any, job_id: str, task: str) -> dict[str, Any]:  # noqa: F811
    """What the column shows in a page that was loaded anew."""
    return shown(doors, bound.restore(job_id, task)[:-1])
