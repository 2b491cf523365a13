"""What the tests of the WebUIs' hosts share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a stand-in looks for LoRAs."""
    (tmp_path / "Lora").mkdir()
    return tmp_path / "Lora"
