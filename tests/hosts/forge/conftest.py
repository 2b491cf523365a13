"""The stand-in of Forge for the tests of its host, and its checkpoints opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from webui_stand_in_forge import ForgeStandIn

from lib_loraclr.hosts import forge


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
