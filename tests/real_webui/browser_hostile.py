"""What a person sees of names, metadata and messages that are written to be run by a browser."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from browser_page import MINUTES, Way
from browser_studio import choose

#: what is run by a browser that takes a text for HTML says so here; the WebUI's own cards of LoRAs take names for HTML (1.10.1)
LISTEN = """() => {
    window.haveRun = [];
    window.runByTheWebUI = [];
    window.ran = (place) => {
        const at = window.event?.target;
        const cards = at?.closest?.("[id$=_extra_tabs]");
        (cards ? window.runByTheWebUI : window.haveRun).push(String(place));
    };
}"""


def hostile(way: Way) -> dict[str, Any]:
    """Every place that shows what a stranger wrote: the picker, rows, Check, the bar, the result, files, history, errors."""
    page = way.page
    page.add_init_script(f"({LISTEN})()")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_prompt textarea", timeout=5 * MINUTES)
    page.wait_for_function("typeof opts === 'object' && Object.keys(opts).length > 0", timeout=MINUTES)
    time.sleep(2)
    way.console.clear()  # before anybody listened
    names = json.loads(os.environ["LORACLR_HOSTILE"])
    way.open()
    way.page.click("#loraclr_refresh")
    time.sleep(2)
    seen: dict[str, Any] = {"picker": " ".join(way.listed(""))}
    way.pick(*names["loras"], names["broken"])
    seen["rows"] = way.text("#loraclr_rows")
    seen["words"] = way.field(names["loras"][1], "trigger").input_value()
    seen["refused"] = way.check()
    way.shot("30-hostile-refused")
    way.drop(names["broken"])
    way.page.click("#loraclr_effort label:has-text('Layers')")
    way.set_advanced(picture=True, paths=2, steps=2)
    seen["check"] = way.check()
    way.shot("31-hostile-check")
    page.click("#loraclr_generate")
    seen["bar"] = _bars(way)
    seen["result"] = way.wait_for_the_result()
    seen["advice"] = way.text("#loraclr_advice")
    way.shot("32-hostile-result")
    return {**seen, **_kept(way, names), **_errors(way, names), **_history(way), **_run(way)}


def _bars(way: Way) -> str:
    """All that the bar said."""
    said: set[str] = set()
    while not way.page.locator("#loraclr_keep").is_visible():
        said |= set(way.page.locator("#tab_loraclr .loraclr-doing, #tab_loraclr .progress").all_inner_texts())
        time.sleep(0.05)
    return " ".join(said)


def _kept(way: Way, names: dict[str, Any]) -> dict[str, Any]:
    """A name that may not be, one that may, and a prompt that is tried."""
    page, name = way.page, way.page.locator("#loraclr_name input")
    name.fill(names["name"])
    name.blur()
    page.wait_for_selector("#loraclr_name_note .loraclr-error", timeout=MINUTES)
    seen = {"name": way.text("#loraclr_name_note")}
    page.locator("#loraclr_try > .label-wrap").first.click()
    page.locator("#loraclr_try_prompt textarea").fill(names["prompt"])
    choose(way, "loraclr_try_against", "The base model")
    page.locator("#loraclr_try_how > .label-wrap").first.click()
    for field, value in {"pictures": "1", "steps": "2"}.items():
        box = page.locator(f"#loraclr_try_{field} input[type=number]")
        box.fill(value)
        box.blur()
    page.click("#loraclr_try_button")
    page.wait_for_selector("#loraclr_tried .loraclr-ab", timeout=4 * MINUTES)
    seen["tried"] = way.text("#loraclr_tried")
    name.fill("harmless")
    name.blur()
    page.wait_for_selector("#loraclr_name_note .loraclr-error", state="detached", timeout=MINUTES)
    seen["kept"] = way.keep()
    page.click("#loraclr_arrangement label:has-text('Side by side')")
    page.wait_for_selector("#loraclr_arrangement_note p", timeout=MINUTES)
    return {**seen, "arranged": way.text("#loraclr_arrangement_note")}


def _errors(way: Way, names: dict[str, Any]) -> dict[str, Any]:
    """A prompt with a tag of no LoRA, and a LoRA that cannot be read."""
    page = way.page
    page.locator("#txt2img_prompt textarea").evaluate(
        "(field, text) => {field.value = text; updateInput(field);}", names["tags"]
    )
    page.click("#loraclr_from_prompt")
    page.wait_for_selector("#loraclr_message .loraclr-note", timeout=MINUTES)
    seen = {"message": way.text("#loraclr_message")}
    way.shot("33-hostile-message")
    return seen


def _history(way: Way) -> dict[str, Any]:
    page = way.page
    page.locator("#loraclr_history > .label-wrap").first.click()
    page.wait_for_selector("#loraclr_history_view .loraclr-made", timeout=MINUTES)
    seen = {"history": way.text("#loraclr_history_view")}
    way.shot("34-hostile-history")
    page.locator("#loraclr_history_view .loraclr-made", has_text="elsewhere").locator(".loraclr-again").click()
    page.wait_for_selector("#loraclr_message:has-text('not installed')", timeout=MINUTES)
    return {**seen, "filled in": way.text("#loraclr_message")}


def _run(way: Way) -> dict[str, Any]:
    """What was run so far; then the control, a text that is taken for HTML."""
    page = way.page
    time.sleep(1)
    seen = {"run": page.evaluate("window.haveRun"), "run by the WebUI": page.evaluate("window.runByTheWebUI")}
    page.evaluate(
        "() => {const place = document.createElement('div'); document.querySelector('#loraclr_view').append(place);"
        " place.innerHTML = '<img src=x onerror=ran`control`>';}"
    )
    page.wait_for_function("window.haveRun.length > 0", timeout=MINUTES)
    return {**seen, "control": page.evaluate("window.haveRun")}
