"""Axes of the X/Y/Z plot, applied as the WebUI does: to a copy of what is generated, one after the other."""

from __future__ import annotations

import copy
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)


class _Axis(SimpleNamespace):
    def __init__(self, label: str, kind: type, apply: Any, **more: Any) -> None:
        super().__init__(label=label, type=kind, apply=apply, **more)


@pytest.fixture
def plot(doors: Doors) -> SimpleNamespace:  # noqa: F811
    """The WebUI's script, loaded before ours."""
    module = SimpleNamespace(axis_options=[_Axis("Nothing", str, None)], AxisOption=_Axis)
    data = [SimpleNamespace(path="/webui/scripts/other.py", module=SimpleNamespace())]
    data.append(SimpleNamespace(path="/webui/scripts/xyz_grid.py", module=module))
    doors.webui.scripts.scripts_data = data
    recipe = json.dumps({"concepts": [{"lora": "fox.safetensors"}]})
    for name in ("one", "two"):
        doors.lora(name, **{"loraclr.request": recipe})
    doors.lora("named", ss_output_name="alias", **{"loraclr.request": recipe})
    doors.module("start").add_axes()
    return module


def drawn(plot: SimpleNamespace, prompt: str, *axes: tuple[int, Any]) -> str:
    """The prompt of one cell.

    Args:
        axes: number among ours, and the value there
    """
    p = copy.copy(SimpleNamespace(prompt=prompt))
    for number, value in axes:
        plot.axis_options[1 + number].apply(p, value, [value])
    return p.prompt


def test_the_file_and_its_weight_are_exchanged_and_nothing_else(plot: SimpleNamespace) -> None:
    prompt = "a fox <lora:fox:0.3> <lora:one:0.8:0.5>, at night"
    assert drawn(plot, prompt, (0, "two")) == "a fox <lora:fox:0.3> <lora:two:0.8:0.5>, at night"
    assert drawn(plot, prompt, (1, 0.5)) == "a fox <lora:fox:0.3> <lora:one:0.5>, at night"
    for order in ([(0, "two"), (1, 0.5)], [(1, 0.5), (0, "two")]):
        assert drawn(plot, prompt, *order) == "a fox <lora:fox:0.3> <lora:two:0.5>, at night"
        assert drawn(plot, "a fox", *order).startswith("a fox <lora:two:"), "at the end where none is named"
    assert drawn(plot, "a fox", (1, 0.5), (0, "two")) == "a fox <lora:two:0.5>"
    assert drawn(plot, "a fox", (0, "two"), (1, 0.5)) == "a fox <lora:two:0.5>"
    assert drawn(plot, "<lora:named:1> <lora:alias:1>", (0, "one")) == "<lora:one:1> <lora:alias:1>", (
        "by name and alias"
    )
    assert drawn(plot, "<LORA:One:1>", (1, 2.0)) == "<lora:One:2>"


def test_only_merged_files_are_offered_and_others_refused_before_the_first_picture(plot: SimpleNamespace) -> None:
    axis = plot.axis_options[1]
    assert axis.choices() == ["alias", "one", "two"]
    axis.confirm(None, ["one", "alias"])
    with pytest.raises(RuntimeError, match="fox is no merged LoRA here: choose from alias, one, two"):
        axis.confirm(None, ["one", "fox"])


def test_they_are_added_once_and_nowhere_where_there_is_no_plot(doors: Doors, plot: SimpleNamespace) -> None:  # noqa: F811
    axes = doors.module("axes")
    axes.add()
    assert [axis.label for axis in plot.axis_options] == ["Nothing", axes.FILE, axes.WEIGHT, axes.EFFORT]
    doors.webui.scripts.scripts_data = []
    axes.add()


def recipe(*loras: str, **options: Any) -> dict[str, str]:
    """A merged file's metadata."""
    concepts = [{"lora": f"{lora}.safetensors"} for lora in loras]
    return {"loraclr.request": json.dumps({"concepts": concepts, "method": "contrastive", "options": options})}


def test_the_effort_chooses_among_merges_of_the_same_concepts(doors: Doors, plot: SimpleNamespace) -> None:  # noqa: F811
    for number, (name, made) in enumerate(
        {
            "usual": recipe("fox", "penguin"),
            "quick-old": recipe("fox", "penguin", effort="fast"),
            "quick": recipe("fox", "penguin", effort="fast"),
            "other": recipe("penguin", effort="fast"),
            "plain": {"loraclr.request": json.dumps({"concepts": [{"lora": "fox.safetensors"}], "method": "average"})},
        }.items()
    ):
        os.utime(doors.lora(name, **made), (number, number))
    axis = plot.axis_options[3]
    assert axis.choices() == ["fast", "balanced"], "what was made"
    prompt = "a fox <lora:usual:0.8>, at night <lora:plain:1>"
    assert drawn(plot, prompt, (2, "fast")) == "a fox <lora:quick:0.8>, at night <lora:plain:1>", "the latest of them"
    assert drawn(plot, "<lora:quick-old:1>", (2, "balanced")) == "<lora:usual:1>", "and back"
    assert drawn(plot, "a fox", (2, "fast")) == "a fox", "nothing is named"
    for order in ([(0, "usual"), (2, "fast"), (1, 0.5)], [(2, "fast"), (1, 0.5), (0, "usual")]):
        assert drawn(plot, prompt, *order) == "a fox <lora:quick:0.5>, at night <lora:plain:1>", "with any other axis"
    p = SimpleNamespace(prompt=prompt)
    axis.confirm(p, ["fast", "balanced"])
    assert p.prompt == prompt
    with pytest.raises(RuntimeError, match="No merge here has the effort thorough: choose from fast, balanced"):
        axis.confirm(p, ["fast", "thorough"])
    with pytest.raises(RuntimeError, match="What is in other was not merged with the effort balanced yet: add that to"):
        axis.confirm(SimpleNamespace(prompt="<lora:other:1>"), ["fast", "balanced"])
