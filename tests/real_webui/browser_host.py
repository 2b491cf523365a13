"""What happens to the WebUI around the tab: installed into, reloaded, left, switched off, without a checkpoint."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from browser_page import MINUTES, Way


def install(way: Way) -> dict[str, Any]:
    """Extensions > Install from URL."""
    page = way.page
    page.click("#tabs > .tab-nav > button:has-text('Extensions')")
    page.click("#tabs_extensions > .tab-nav > button:has-text('Install from URL')")
    page.get_by_label("URL for extension's git repository").fill(os.environ["LORACLR_INSTALL_URL"])
    page.locator("#tabs_extensions button:visible", has_text="Install").last.click()
    page.wait_for_function(
        "/Installed into|Error|error/.test(document.querySelector('#extension_install_result').innerText)",
        timeout=5 * MINUTES,
    )
    way.shot("13-install")
    return {"told": way.text("#extension_install_result")}


def _reload_ui(way: Way) -> None:
    way.page.click("#footer a:has-text('Reload UI')")
    time.sleep(4)
    way.page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
    time.sleep(2)


def reload(way: Way) -> dict[str, Any]:
    """Reload UI twice; the tab works after each."""
    listed = []
    for _ in range(2):
        _reload_ui(way)
        way.open()
        way.pick("fox-face")
        listed.append(way.field("fox-face", "trigger").input_value())
    return {"listed": listed}


def anew(way: Way) -> dict[str, Any]:
    """Reload UI with other defaults in the Settings tab's file; then during a merge."""
    page, config = way.page, Path(os.environ["LORACLR_UI_CONFIG"])
    saved = json.loads(config.read_text("utf-8"))
    seen: dict[str, Any] = {"kept as defaults": sorted(key for key in saved if key.startswith("loraclr/"))}
    changed = {"loraclr/Effort/value": "Fast", "loraclr/Negative prompt/value": "blurry"}
    config.write_text(json.dumps(saved | changed), "utf-8")
    _reload_ui(way)
    config.write_text(json.dumps(saved), "utf-8")
    way.open()
    way.pick("fox-face", "pizza")
    way.field("pizza", "te_weight").fill("0.6")
    seen["effort"] = page.locator("#loraclr_effort input:checked").input_value()
    seen["negative"] = page.locator("#loraclr_negative input, #loraclr_negative textarea").first.input_value()
    page.click("#loraclr_generate")
    way.wait_for_the_bar()
    _reload_ui(way)
    way.open()
    page.wait_for_selector(".loraclr-concept[data-lora='pizza']", timeout=MINUTES)
    seen["weight"] = way.field("pizza", "te_weight").input_value()
    way.shot("15-anew")
    return {**seen, "told": way.text("#loraclr_view")}


def _begun(way: Way) -> str:
    """A merge that takes a while is running; what its bar says."""
    way.open()
    way.pick("penguin", "pizza")
    way.quick(picture=False)
    way.set_advanced(picture=False, paths=6, steps=6)
    way.page.click("#loraclr_generate")
    return way.wait_for_the_bar()


def leave(way: Way) -> dict[str, Any]:
    """The page is closed during a merge."""
    bar = _begun(way)
    way.page.close()
    return {"bar": bar}


def restart(way: Way) -> dict[str, Any]:
    """Reload UI during a merge."""
    bar = _begun(way)
    _reload_ui(way)
    return {"bar": bar}


def vanilla(way: Way) -> dict[str, Any]:
    """Reload UI where this is not installed: only for what the console says."""
    _reload_ui(way)
    return {"tab": way.page.locator("#tab_loraclr").count()}


def off(way: Way) -> dict[str, Any]:
    """The built-in Lora extension is switched off."""
    way.open()
    way.page.click("#loraclr_check")
    way.page.wait_for_selector("#loraclr_view .loraclr-error", timeout=MINUTES)
    way.shot("8-off")
    return {"message": way.text("#loraclr_message")}


def settings(way: Way) -> dict[str, Any]:
    """The section of the Settings tab."""
    page = way.page
    page.click("#tabs > .tab-nav > button:has-text('Settings')")
    page.click("#settings > .tab-nav > button:has-text('LoRACLR')")
    page.wait_for_selector("#settings_loraclr", state="visible", timeout=MINUTES)
    way.shot("14-settings")
    return {"section": way.text("#settings_loraclr")}


def bare(way: Way) -> dict[str, Any]:
    """No checkpoint is loaded."""
    way.open()
    way.pick("penguin", "pizza")
    return {"told": way.check()}
