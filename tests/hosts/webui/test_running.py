"""The one place that chooses the host of the WebUI that it runs in."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from webui_stand_in import StandIn
from webui_stand_in_forge import ForgeStandIn
from webui_stand_in_reforge import ReforgeStandIn

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts import running


def test_the_host_is_that_of_the_webui_at_hand(webui: StandIn):
    name = {ForgeStandIn: "forge", ReforgeStandIn: "reforge"}.get(type(webui), "a1111")
    with running.session() as host:
        assert host.name == name
    assert running.peek().name == name and running.loaded_family().name == "SD1"


def test_a_webui_whose_models_no_host_knows_is_refused(webui: StandIn, monkeypatch: pytest.MonkeyPatch):
    """Forge Classic has a library by the name of reForge's, and A1111's own way to load a model."""
    monkeypatch.setitem(sys.modules, "ldm_patched", ModuleType("ldm_patched"))
    if type(webui) is not StandIn:
        with running.session() as host:
            assert host.name in ("forge", "reforge")
        return
    for ask in (running.peek, running.loaded_family, running.session):
        with pytest.raises(
            LoraclrError, match="not merge inside Forge Classic, .* in Forge or reForge, or on the command line"
        ):
            ask()
