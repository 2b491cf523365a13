"""The stand-ins of the WebUIs for the tests of their hosts, and their checkpoints opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from webui_stand_in import StandIn
from webui_stand_in_forge import ForgeStandIn

from lib_loraclr.hosts import a1111, forge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a stand-in looks for LoRAs."""
    (tmp_path / "Lora").mkdir()
    return tmp_path / "Lora"


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


@pytest.fixture
def forge_webui(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ForgeStandIn:
    return ForgeStandIn(folder).install(monkeypatch)


@pytest.fixture
def forge_host(forge_webui: ForgeStandIn) -> Iterator[forge.ForgeHost]:
    with forge.session() as opened:
        yield opened


@pytest.fixture
def forge_xl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[forge.ForgeHost]:
    ForgeStandIn(folder, "SDXL").install(monkeypatch)
    with forge.session() as opened:
        yield opened
