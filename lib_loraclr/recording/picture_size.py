"""The size of the pictures that are recorded: where nobody asks for one, that which the LoRAs were trained at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..files import trained_size
from ..request import RecordingOptions


def with_size(recording: RecordingOptions, metadata: Iterable[Mapping[str, Any]], native: int) -> RecordingOptions:
    """The options with a height and a width.

    The smallest size that a LoRA was trained at costs least and is known to at least one of them. A checkpoint draws badly far
    below its own size, so smaller ones than half of that count only where no LoRA names another; and larger ones than that are
    left to who asks for them.

    Args:
        metadata: of the LoRAs
        native: the checkpoint's own size
    """
    if recording.height and recording.width:
        return recording
    sizes = [size for size in map(trained_size, metadata) if size]
    sensible = [size for size in sizes if 2 * size >= native]
    size = min(native, min(sensible) if sensible else max(sizes, default=native))
    return replace(recording, height=recording.height or size, width=recording.width or size)
