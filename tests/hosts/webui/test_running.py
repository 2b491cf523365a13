"""The one place that chooses the host of the WebUI that it runs in."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from webui_stand_in import StandIn
from webui_stand_in_forge import ForgeStandIn

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts import running


def test_the_host_is_that_of_the_webui_at_hand(webui: StandIn):
    name = "forge" if isinstance(webui, ForgeStandIn) else "a1111"
    with running.session() as host:
        assert host.name == name
    assert running.peek().name == name and running.loaded_family().name == "SD1"


def test_a_webui_whose_models_no_host_knows_is_refused(webui: StandIn, monkeypatch: pytest.MonkeyPatch):
    """reForge has the library that Forge Classic has, and A1111's own way to load a model; Forge has neither."""
    monkeypatch.setitem(sys.modules, "ldm_patched", ModuleType("ldm_patched"))
    if isinstance(webui, ForgeStandIn):
        with running.session() as host:
            assert host.name == "forge"
        return
    for ask in (running.peek, running.loaded_family, running.session):
        with pytest.raises(
            LoraclrError, match="not merge inside reForge or Forge Classic .* in Forge, or on the command line"
        ):
            ask()
