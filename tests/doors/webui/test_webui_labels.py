"""What people read on the fields."""

from __future__ import annotations

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import fields

from lib_loraclr.request import schema
from lib_loraclr.solving import EFFORT, METHODS


@pytest.mark.parametrize("method", METHODS)
def test_an_option_is_called_by_what_it_does_and_its_code_word_is_in_the_tooltip(doors: Doors, method: str) -> None:  # noqa: F811
    labels = doors.module("labels")
    items = [item for item in schema(METHODS[method].options) if item.name != EFFORT]
    told = [labels.option_label(item) for item in items]
    assert len(set(told)) == len(told), "no two fields are called alike"
    for item, label in zip(items, told, strict=True):
        assert " " in label and "_" not in label and label.lower() != item.name.replace("_", " ")
        assert labels.with_code(item.help, item.name).endswith(f". In requests: {item.name}")


def test_choices_that_settings_defaults_may_hold_are_their_own_labels(doors: Doors) -> None:  # noqa: F811
    """The WebUI compares a saved value with labels (`modules/ui_loadsave.py`), and drops what is none."""
    labels = doors.module("labels")
    assert [labels.code_of(label, labels.BANKS) for label in labels.BANKS] == ["", "photo", "booru", "none"]
    assert labels.code_of("photo", labels.BANKS) == "photo", "what requests call it is understood as well"
    form = doors.module("form")
    for written, code in (("Fast", "fast"), ("thorough", "thorough")):
        request = form.settings(fields(method="contrastive", effort=written, bank="Tags (booru)"))
        assert request.options["effort"] == code and request.prompts.bank == "booru"
