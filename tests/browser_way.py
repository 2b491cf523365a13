"""What a person does in the tab, done by a browser; `test_browser.py` runs this with the WebUI's interpreter.

    python browser_way.py URL WAY [FOLDER FOR SCREENSHOTS]

Prints what was seen as JSON. Needs playwright and a Chromium (`LORACLR_CHROMIUM`, or one on the path).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MINUTES = 60_000
SMALL = {"paths": 2, "steps": 3}


class Way:
    """A page of the WebUI, and the tab's parts."""

    def __init__(self, page: Page, url: str, shots: Path | None, theme: str = "dark") -> None:
        self.page, self.shots, self.theme = page, shots, theme
        self.console: list[str] = []
        page.on("console", lambda line: self.console.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.console.append(f"{error.message} {error.stack}"))
        page.goto(f"{url}?__theme={theme}", wait_until="domcontentloaded", timeout=2 * MINUTES)
        page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
        page.wait_for_function("typeof opts === 'object' && Object.keys(opts).length > 0", timeout=MINUTES)

    def open(self) -> None:
        self.page.click("#tabs > .tab-nav > button:has-text('LoRACLR')")
        self.page.wait_for_selector("#loraclr_generate", state="visible", timeout=MINUTES)
        time.sleep(1.5)

    def pick(self, *names: str) -> None:
        box = self.page.locator("#loraclr_loras input")
        for name in names:
            box.click()
            box.fill(name)
            self.page.click(f"#loraclr_loras li[data-value='{name}'], #loraclr_loras li[data-value$='/{name}']")
            self.page.wait_for_selector(f".loraclr-concept[data-lora='{name}']", timeout=MINUTES)
        box.blur()

    def field(self, row: str, name: str) -> Any:
        return self.page.locator(f".loraclr-concept[data-lora='{row}'] [data-field='{name}']")

    def quick(self) -> None:
        """Everything as small as it may be."""
        self.page.click("#loraclr_effort label:has-text('Fast')")
        fold = self.page.locator("#loraclr_advanced > .label-wrap").first
        fold.click()
        for name, value in SMALL.items():
            self.page.locator(f"#loraclr_{name} input").fill(str(value))
            self.page.locator(f"#loraclr_{name} input").blur()
        fold.click()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def shot(self, name: str, *, whole: bool = True) -> None:
        if self.shots:
            time.sleep(0.6)
            width = self.page.viewport_size["width"]
            self.page.screenshot(path=self.shots / f"{name}-{self.theme}-{width}.png", full_page=whole)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def whole(way: Way) -> dict[str, Any]:
    """Open, pick, check, merge, see the result, keep, send to txt2img, generate."""
    page, seen = way.page, {}
    way.open()
    way.shot("1-empty")
    way.pick("fox-face", "penguin")
    seen["triggers"] = [way.field(name, "trigger").input_value() for name in ("fox-face", "penguin")]
    way.field("penguin", "te_weight").fill("0.9")
    way.pick("style-mono")
    seen["edited"] = way.field("penguin", "te_weight").input_value()
    seen["kind"] = way.field("style-mono", "kind").input_value()
    seen["name"] = page.locator("#loraclr_name input").input_value()
    page.locator("[data-all='unet_weight']").fill("0.8")
    seen["bulk"] = [field.input_value() for field in page.locator(".loraclr-concept [data-field='unet_weight']").all()]
    return {**seen, **_merge(way), **_use(way)}


def _merge(way: Way) -> dict[str, Any]:
    page, seen = way.page, {}
    way.quick()
    page.click("#loraclr_check")
    page.wait_for_selector("#loraclr_view .loraclr-table", timeout=2 * MINUTES)
    seen["check"] = way.text("#loraclr_view")
    way.shot("2-checked")
    page.click("#loraclr_generate")
    page.wait_for_selector("#tab_loraclr .progressDiv", timeout=MINUTES)
    page.wait_for_function(
        "document.querySelector('#tab_loraclr .progress').innerText.includes('%')", timeout=2 * MINUTES
    )
    seen["bar"] = way.text("#tab_loraclr .progress")
    way.shot("3-running")
    page.wait_for_selector("#loraclr_keep", state="visible", timeout=8 * MINUTES)
    page.wait_for_selector("#loraclr_picture img", state="visible", timeout=MINUTES)
    seen["result"] = way.text("#loraclr_view")
    way.shot("4-result")
    return seen


def _use(way: Way) -> dict[str, Any]:
    page, seen = way.page, {}
    page.click("#loraclr_keep")
    page.wait_for_selector("#loraclr_send", state="visible", timeout=MINUTES)
    seen["kept"] = way.text("#loraclr_log")
    time.sleep(3)  # the Lora tabs refresh
    seen["cards"] = page.eval_on_selector_all("#txt2img_lora_cards .card", "cards => cards.map(c => c.dataset.name)")
    way.shot("5-kept")
    page.click("#loraclr_send")
    page.wait_for_selector("#txt2img_generate", state="visible", timeout=MINUTES)
    seen["prompt"] = page.locator("#txt2img_prompt textarea").input_value()
    for name in ("width", "height"):
        page.locator(f"#txt2img_{name} input[type=number]").fill("128")
        page.locator(f"#txt2img_{name} input[type=number]").blur()
    page.locator("#txt2img_steps input[type=number]").fill("4")
    page.locator("#txt2img_steps input[type=number]").blur()
    page.click("#txt2img_generate")
    page.wait_for_selector("#txt2img_gallery img", timeout=4 * MINUTES)
    seen["infotext"] = way.text("#html_info_txt2img")
    return seen


def keyboard(way: Way) -> dict[str, Any]:
    """From prompt, Ctrl+Enter, Esc; then a merge that nobody keeps, and the page loaded anew."""
    page, seen = way.page, {}
    page.locator("#txt2img_prompt textarea").fill("a castle <lora:penguin:0.7>, <lora:pizza:0.5:0.25> <lora:nobody:1>")
    way.open()
    page.click("#loraclr_from_prompt")
    page.wait_for_selector(".loraclr-concept[data-lora='pizza']", timeout=MINUTES)
    time.sleep(1)
    seen["weights"] = [
        [way.field(row, name).input_value() for name in ("te_weight", "unet_weight")] for row in ("penguin", "pizza")
    ]
    seen["message"] = way.text("#loraclr_message")
    way.quick()
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "document.querySelector('#tab_loraclr .progress')?.innerText.includes('%')", timeout=2 * MINUTES
    )
    begun = time.monotonic()
    page.keyboard.press("Escape")
    page.wait_for_selector("#loraclr_interrupting", state="visible", timeout=MINUTES)
    seen["acknowledged"] = time.monotonic() - begun
    page.wait_for_function("document.querySelector('#loraclr_view').innerText.includes('Interrupted')", timeout=MINUTES)
    page.wait_for_selector("#loraclr_interrupting", state="hidden", timeout=MINUTES)
    seen["interrupted"] = way.text("#loraclr_view")
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "document.querySelector('#tab_loraclr .progress')?.innerText.includes('%')", timeout=2 * MINUTES
    )
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
    time.sleep(3)
    way.open()
    page.wait_for_selector("#tab_loraclr .progressDiv", timeout=MINUTES)
    page.wait_for_selector("#loraclr_discard", state="visible", timeout=8 * MINUTES)
    seen["restored"] = way.text("#loraclr_view")
    page.click("#loraclr_discard")
    page.wait_for_selector("#loraclr_discard", state="hidden", timeout=MINUTES)
    seen["discarded"] = way.text("#loraclr_view")
    return seen


def looks(way: Way) -> dict[str, Any]:
    """The tab as it is, narrow or light; nothing is merged."""
    way.open()
    way.pick("fox-face", "penguin", "style-mono")
    time.sleep(3)
    way.page.click("#loraclr_check")
    way.page.wait_for_selector("#loraclr_view .loraclr-table", timeout=2 * MINUTES)
    way.shot("6-looks")
    way.page.locator("#loraclr_advanced > .label-wrap").first.click()
    way.page.locator(".loraclr-concept .loraclr-more summary").first.click()
    way.shot("7-advanced")
    return {"overflow": way.overflow()}


def reload(way: Way) -> dict[str, Any]:
    """Reload UI twice; the tab works after each."""
    listed = []
    for _ in range(2):
        way.page.click("#footer a:has-text('Reload UI')")
        time.sleep(4)
        way.page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
        time.sleep(2)
        way.open()
        way.pick("fox-face")
        listed.append(way.field("fox-face", "trigger").input_value())
    return {"listed": listed}


def off(way: Way) -> dict[str, Any]:
    """The built-in Lora extension is switched off."""
    way.open()
    way.page.click("#loraclr_check")
    way.page.wait_for_selector("#loraclr_view .loraclr-error", timeout=MINUTES)
    way.shot("8-off")
    return {"message": way.text("#loraclr_message")}


WAYS = {"whole": whole, "keyboard": keyboard, "looks": looks, "narrow": looks, "reload": reload, "off": off}


def main() -> None:
    url, name = sys.argv[1:3]
    shots = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    theme = os.environ.get("LORACLR_THEME", "dark")
    width = 390 if name == "narrow" else 1280
    with sync_playwright() as driver:
        found = os.environ.get("LORACLR_CHROMIUM") or shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        way = Way(page, url, shots, theme)
        try:
            seen = WAYS[name](way)
        except Exception:
            if shots:
                page.screenshot(path=shots / f"failed-{name}.png", full_page=True)
            sys.stderr.write("\n".join(way.console))
            raise
        finally:
            browser.close()
    sys.stdout.write(json.dumps({**seen, "console": way.console}))


if __name__ == "__main__":
    main()
