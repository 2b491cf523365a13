"""Axes of the WebUI's own X/Y/Z plot: which merged file, its weight, and the effort that it was made with.

A merge takes minutes, so the effort chooses among merges that were kept, as the queue makes them in a night, and makes none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from modules import scripts

FILE, WEIGHT = "[LoRACLR] merged file", "[LoRACLR] weight of the merged file"
EFFORT = "[LoRACLR] effort of the merged file"
_TAG = re.compile(r"<lora:([^:>]+)((?::[^>]*)?)>", re.IGNORECASE)


def add() -> None:
    """Once for each time that the WebUI loads its scripts, its own before those of extensions; nothing where it has no plot."""
    plot = _plot()
    if plot is None or any(axis.label == FILE for axis in plot.axis_options):
        return
    plot.axis_options += [
        plot.AxisOption(FILE, str, _choose, confirm=_confirm, choices=merged_files),
        plot.AxisOption(WEIGHT, float, _weigh),
        plot.AxisOption(EFFORT, str, _remake, confirm=_confirm_efforts, choices=efforts),
    ]


def _plot() -> ModuleType | None:
    """The script `xyz_grid.py` as it is loaded."""
    loaded = (data for data in scripts.scripts_data if Path(data.path).name == "xyz_grid.py")
    return next((data.module for data in loaded if hasattr(data.module, "axis_options")), None)


def merged_files() -> list[str]:
    """What prompts call the files that were merged by LoRACLR and are installed."""
    return [alias for _, alias in _merged()]


def _merged() -> list[tuple[str, str]]:
    """Name and alias of each."""
    # here, as they bring the engine with them, and the WebUI's start need not wait for it
    from .history import merged_loras

    return [(lora.name, lora.alias) for lora in merged_loras()]


def efforts() -> list[str]:
    """Those that merges which are kept were made with."""
    from ...solving import all_efforts

    made = {_effort(request) for _, request in _requests()}
    return [effort for effort in all_efforts() if effort in made]


def _requests() -> list[tuple[Any, Any]]:
    """The installed merges and what was asked for each, the latest first."""
    from .history import requests

    return sorted(requests(), key=lambda found: -found[0].path.stat().st_mtime)


def _effort(request: Any) -> str:
    """What a merge was made with; empty for a method without."""
    from ...solving import Procedure

    return getattr(Procedure.of(request).options, "effort", "")


def _remade(name: str, effort: str) -> str:
    """The merge of the same concepts by the same method with another effort, by what prompts call it.

    Args:
        name: or alias, of the one that the prompt names

    Raises:
        RuntimeError: there is none
    """
    made = _requests()
    named = (request for lora, request in made if name.lower() in (lora.name.lower(), lora.alias.lower()))
    asked = next(named, None)
    for lora, request in made if asked else ():
        if (request.concepts, request.method, _effort(request)) == (asked.concepts, asked.method, effort):
            return lora.alias
    raise RuntimeError(
        f"What is in {name} was not merged with the effort {effort} yet: add that to the queue in the tab LoRACLR."
    )


def _confirm_efforts(p: Any, values: Sequence[str]) -> None:
    """Before the first picture; where another axis chooses the file, as its turn comes."""
    known = efforts()
    for value in values:
        if value not in known:
            raise RuntimeError(
                f"No merge here has the effort {value}: choose from {', '.join(known) or 'none, merge some first'}."
            )
        _remake(SimpleNamespace(prompt=p.prompt), value, values)


def _remake(p: Any, value: str, values: Sequence[str]) -> None:
    """The same concepts merged with another effort, in place of the merged file that the prompt names."""
    p.loraclr_effort = value
    p.prompt, _ = _retagged(p.prompt, lambda name, weights: f"<lora:{_remade(name.strip(), value)}{weights}>")


def _confirm(p: Any, values: Sequence[str]) -> None:
    """Before the first picture."""
    known = merged_files()
    for value in values:
        if value not in known:
            raise RuntimeError(
                f"{value} is no merged LoRA here: choose from {', '.join(known) or 'none, merge some first'}."
            )


def _choose(p: Any, value: str, values: Sequence[str]) -> None:
    """Another merged file in place of the one that the prompt names; at its end where it names none."""
    weight, effort = getattr(p, "loraclr_weight", None), getattr(p, "loraclr_effort", None)
    value = _remade(value, effort) if effort else value
    tail = None if weight is None else f":{weight:g}"
    p.prompt, found = _retagged(p.prompt, lambda _, old: f"<lora:{value}{tail or old}>")
    if not found:
        p.prompt = f"{p.prompt} <lora:{value}{tail or ':1'}>"


def _weigh(p: Any, value: float, values: Sequence[float]) -> None:
    """Another weight of the merged file; of the one that is still to be chosen, where the prompt names none yet."""
    p.loraclr_weight = value
    p.prompt, _ = _retagged(p.prompt, lambda name, _: f"<lora:{name}:{value:g}>")


def _retagged(prompt: str, tag: Callable[[str, str], str]) -> tuple[str, bool]:
    """The prompt with another tag in place of the first that names a merged file, and whether there is one.

    Args:
        tag: of the name and the weights that stand there, with their colon
    """
    known = {name.lower() for names in _merged() for name in names}
    for match in _TAG.finditer(prompt):
        if match[1].strip().lower() in known:
            return prompt[: match.start()] + tag(match[1], match[2]) + prompt[match.end() :], True
    return prompt, False
