"""What a person does to compare methods on their own LoRAs: the button under Advanced."""

from __future__ import annotations

from typing import Any

from browser_page import MINUTES, Way
from browser_studio import choose, wait_for_doing

_ROWS = "#loraclr_view .loraclr-compared:not([data-old]) .loraclr-methods tbody tr"
#: chosen in another order than that in which they are tried
CHOSEN = ("TIES", "Average", "Closed form", "Weighted sum (all tags)")


def comparison(way: Way) -> dict[str, Any]:
    """Some methods side by side; found again by the page that is loaded anew; then all of them, stopped after the first."""
    page = way.page
    way.open()
    way.pick("fox-face", "penguin")
    way.quick()
    page.locator("#loraclr_advanced > .label-wrap").first.click()
    page.wait_for_selector("#loraclr_compare_note:has-text('methods')", timeout=2 * MINUTES)
    seen: dict[str, Any] = {"all": way.text("#loraclr_compare_note")}
    for label in CHOSEN:
        choose(way, "loraclr_compare_methods", label)
    page.wait_for_selector("#loraclr_compare_note:has-text('4 methods')", timeout=MINUTES)
    seen["some"] = way.text("#loraclr_compare_note")
    way.shot("36-compare")
    page.click("#loraclr_compare")
    seen["bar"] = wait_for_doing(way, " of 4)")
    way.shot("37-comparing")
    seen |= _found(way)
    way.shot("38-compared")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
    way.open()
    seen["again"] = _found(way)["methods"]
    seen["kept"] = page.locator("#loraclr_keep").is_visible()
    return {**seen, "stopped": _stopped(way), "overflow": way.overflow(), "tips": way.foreign_tips()}


def _found(way: Way) -> dict[str, Any]:
    """What stands in the result column."""
    page = way.page
    page.wait_for_selector(_ROWS, timeout=20 * MINUTES)
    page.wait_for_selector("#loraclr_interrupt", state="hidden", timeout=MINUTES)
    cells = "rows => rows.map(row => Array.from(row.children).map(cell => cell.innerText))"
    rows = page.eval_on_selector_all(_ROWS, cells)
    drawn = page.eval_on_selector_all(
        "#loraclr_view .loraclr-sheet",
        "sheets => sheets.map(s => [s.querySelector('b').innerText, s.querySelector('img').naturalWidth])",
    )
    return {"methods": [row[0] for row in rows], "rows": rows, "drawn": drawn, "text": way.text("#loraclr_view")}


def _stopped(way: Way) -> dict[str, Any]:
    """All methods, with Interrupt while the third is tried; what stands there, and that a picture is drawn afterwards."""
    page = way.page
    way.pick("fox-face", "penguin")
    way.quick(picture=True)
    page.eval_on_selector_all("#loraclr_view .loraclr-compared", "views => views.forEach(view => view.dataset.old = 1)")
    page.locator("#loraclr_advanced > .label-wrap").first.click()
    page.click("#loraclr_compare")
    wait_for_doing(way, "(3 of ")
    page.evaluate("document.getElementById('loraclr_interrupt').click()")  # out of sight where the page is narrow
    seen = _found(way)
    way.shot("39-compare-stopped")
    seen["overflow"] = way.overflow()
    return {**seen, "picture": way.generate("sks animal", seed="7")}
