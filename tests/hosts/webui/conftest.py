"""What is the same in all WebUIs is asked of each of their stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest
from webui_stand_in import StandIn
from webui_stand_in_forge import ForgeStandIn
from webui_stand_in_reforge import ReforgeStandIn


@pytest.fixture(params=[StandIn, ForgeStandIn, ReforgeStandIn], ids=["a1111", "forge", "reforge"])
def webui(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> StandIn:
    return request.param(folder).install(monkeypatch)
