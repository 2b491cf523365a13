"""How the WebUI's host reads prompts: its clip skip is the WebUI's setting, and nobody else's."""

from __future__ import annotations

import pytest
from webui_stand_in import StandIn

from lib_loraclr.hosts import a1111


@pytest.mark.parametrize("setting", [1, 2])
def test_clip_skip_is_the_webuis_setting(webui: StandIn, setting: int):
    webui.shared.opts.CLIP_stop_at_last_layers = setting
    with a1111.session() as host:
        with host.skipping(3):
            assert host.clip_skip == setting
            assert webui.shared.opts.CLIP_stop_at_last_layers == setting
        assert host.weighs_words


def test_of_xl_the_setting_changes_nothing(webui: StandIn, xl: a1111.A1111Host):
    assert xl.clip_skip == 2
