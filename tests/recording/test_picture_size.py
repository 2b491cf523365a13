"""The size of the pictures that are recorded."""

from __future__ import annotations

import pytest

from lib_loraclr.files import trained_size
from lib_loraclr.recording import with_size
from lib_loraclr.request import RecordingOptions


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ({"ss_resolution": "(128, 128)"}, 128),
        ({"ss_resolution": "(512, 768)"}, 640),
        ({"modelspec.resolution": "1024x1024"}, 1024),
        ({"ss_resolution": "768"}, 768),
        ({"ss_resolution": "None", "modelspec.resolution": "512x512"}, 512),
        ({"ss_resolution": "(7, 99999)"}, 0),
        ({}, 0),
    ],
)
def test_the_size_that_a_lora_was_trained_at(metadata: dict[str, str], size: int) -> None:
    assert trained_size(metadata) == size


@pytest.mark.parametrize(
    ("trained", "native", "size"),
    [
        ((), 512, 512),
        ((512, 768), 512, 512),
        ((768, 1024), 512, 512),  # larger ones cost more than the checkpoint asks for
        ((768, 1024), 1024, 768),
        ((256, 1024), 1024, 1024),  # so small a checkpoint draws badly
        ((128, 128), 512, 128),  # but nothing else is known to any of them
        ((64, 128), 512, 128),
    ],
)
def test_the_smallest_sensible_size_is_recorded(trained: tuple[int, ...], native: int, size: int) -> None:
    metadata = [{"ss_resolution": f"({side}, {side})"} for side in trained]
    found = with_size(RecordingOptions(), metadata, native)
    assert (found.height, found.width) == (size, size)


def test_what_somebody_asks_for_is_recorded() -> None:
    metadata = [{"ss_resolution": "(128, 128)"}]
    assert with_size(RecordingOptions(height=256, width=320), metadata, 512) == RecordingOptions(height=256, width=320)
    assert with_size(RecordingOptions(height=256), metadata, 512) == RecordingOptions(height=256, width=128)
