"""What merges would take and what they came to, for a person and as values for JSON."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path

from ...merge import Forecast, seconds_per_sample
from ...model import Host
from ...output import Merge


def print_forecast(looked: Forecast, host: Host) -> None:
    """For a person."""
    for problem in looked.examination.problems:
        print(f"problem: {problem}")
    for warning in looked.examination.warnings:
        print(f"warning: {warning}")
    size = _size(looked, host)
    seconds = looked.seconds(seconds_per_sample(host, *size))
    for item in looked.stages:
        print(f"{item.stage.value:<28} {item.units:>8}  about {_duration(seconds[item.stage])}")
    memory = looked.memory
    card = f", {memory.device:.0f} MB of the graphics card" if memory.device else ""
    print(
        f"\nin all about {_duration(sum(seconds.values()))}, give or take half, at {size[1]}x{size[0]} on {host.device};"
    )
    print(f"{memory.ram:.0f} MB of RAM{card}, beside the checkpoint; a file of {memory.file:.1f} MB at most.")


def forecast_values(looked: Forecast, host: Host, paces: MutableMapping[tuple[int, int], float]) -> dict[str, object]:
    """For a line of JSON.

    Args:
        paces: height and width -> seconds of an evaluation, as far as they were measured; added to
    """
    size = _size(looked, host)
    if size not in paces:
        paces[size] = seconds_per_sample(host, *size)
    memory = looked.memory
    return {
        "seconds": round(sum(looked.seconds(paces[size]).values())),
        "stages": {item.stage.value: item.units for item in looked.stages},
        "ram_mb": round(memory.ram),
        "device_mb": round(memory.device),
        "file_mb": round(memory.file, 1),
        "warnings": list(looked.examination.warnings),
    }


def result_values(merge: Merge, files: Sequence[Path]) -> dict[str, object]:
    """What a finished merge came to, for a line of JSON; `--report` writes all there is to know."""
    concepts = [
        {"name": told.name, "merged": told.merged, "recognised": told.recognised, "verdict": told.verdict}
        for told in merge.report.concepts
    ]
    return {
        "files": [str(file) for file in files],
        "concepts": concepts,
        "base_drift": merge.report.base_drift,
        "seed": merge.request.seed,
        "warnings": list(merge.report.warnings),
    }


def _size(looked: Forecast, host: Host) -> tuple[int, int]:
    """Height and width in pixels."""
    recording = looked.request.recording
    return recording.height or host.default_size, recording.width or host.default_size


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
