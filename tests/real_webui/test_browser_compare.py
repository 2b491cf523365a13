"""Methods side by side on a person's own LoRAs, in each real WebUI and a real browser.

Needs what `test_browser.py` needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import go, missing, running
from programs import EVERY, Program

from lib_loraclr.merge import comparable

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


@pytest.fixture(scope="module", params=EVERY)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program: Program = request.param
    with running(tmp_path_factory.mktemp("compare"), program=program) as (_, address):
        yield address


@pytest.mark.parametrize(("way", "theme"), [("comparison", "light"), ("narrow comparison", "dark")])
def test_methods_side_by_side(url: str, way: str, theme: str) -> None:
    seen = go(url, way, LORACLR_THEME=theme)
    every = len(comparable())
    assert f"{every} methods: " in seen["all"] and "4 methods: " in seen["some"]
    assert " of 4) · " in seen["bar"] and "%" in seen["bar"]
    assert {*seen["methods"]} == {"TIES", "Average", "Closed form", "Weighted sum (all tags)"}
    means = [float(row[3]) for row in seen["rows"]]
    assert means == sorted(means, reverse=True) and f"{seen['methods'][0]} keeps most here" in seen["text"]
    assert [label for label, _ in seen["drawn"]] == seen["methods"][:3]
    assert all(width > 200 for _, width in seen["drawn"]), "they are pictures, and loaded"
    assert seen["again"] == seen["methods"] and not seen["kept"]
    stopped = seen["stopped"]
    assert len(stopped["methods"]) == 2 and stopped["drawn"] == [] and "It was interrupted at " in stopped["text"]
    assert f"2 of {every} methods were tried" in stopped["text"] and stopped["picture"]
    assert seen["overflow"] <= 0 and stopped["overflow"] <= 0 and seen["tips"] == []
