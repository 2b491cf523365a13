"""The stand-in of the WebUI for the tests of the host adapter, and its checkpoints opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from webui_stand_in import StandIn

from lib_loraclr.hosts import a1111


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    (tmp_path / "Lora").mkdir()
    return StandIn(tmp_path / "Lora").install(monkeypatch)


@pytest.fixture
def host(webui: StandIn) -> Iterator[a1111.A1111Host]:
    with a1111.session() as opened:
        yield opened


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[a1111.A1111Host]:
    StandIn(tmp_path, "SDXL").install(monkeypatch)
    with a1111.session() as opened:
        yield opened
