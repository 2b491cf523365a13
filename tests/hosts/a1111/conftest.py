"""The stand-in of A1111's WebUI for the tests of its host, and its checkpoints opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from webui_stand_in import StandIn

from lib_loraclr.hosts import a1111


@pytest.fixture
def webui(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(folder).install(monkeypatch)


@pytest.fixture
def host(webui: StandIn) -> Iterator[a1111.A1111Host]:
    with a1111.session() as opened:
        yield opened


@pytest.fixture
def xl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[a1111.A1111Host]:
    StandIn(folder, "SDXL").install(monkeypatch)
    with a1111.session() as opened:
        yield opened
