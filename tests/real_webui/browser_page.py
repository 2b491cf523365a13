"""A page of the WebUI in a browser, and the tab's parts; what a person does with them is in browser_way.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

MINUTES = 60_000
#: so little is recorded that a merge takes seconds
SMALL = {"paths": 2, "steps": 3}

#: SHA-256 of a picture's pixels; its file has the prompt in it
_PIXELS = """async (image) => {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const digest = await crypto.subtle.digest("SHA-256", pixels);
    return Array.from(new Uint8Array(digest)).map((byte) => byte.toString(16).padStart(2, "0")).join("");
}"""


#: what an item of a list stands for, as gradio 3 and 4 name it
OFFERED = "(item => item.dataset.value || item.getAttribute('aria-label'))"


class Way:
    """A page of the WebUI, and the tab's parts."""

    def __init__(self, page: Page, url: str, shots: Path | None, theme: str = "dark") -> None:
        self.page, self.shots, self.theme = page, shots, theme
        self.console: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.console.append(f"{error.message} {error.stack}"))
        page.goto(f"{url}?__theme={theme}", wait_until="domcontentloaded", timeout=2 * MINUTES)
        page.wait_for_selector("#txt2img_prompt textarea", timeout=5 * MINUTES)
        page.wait_for_function("typeof opts === 'object' && Object.keys(opts).length > 0", timeout=MINUTES)

    def _note(self, line: Any) -> None:
        if line.type in ("error", "warning"):
            self.console.append(f"{line.text} ({line.location['url']})")

    # -- looking

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def shot(self, name: str, *, whole: bool = True) -> None:
        if self.shots:
            time.sleep(0.6)
            width = self.page.viewport_size["width"]
            self.page.screenshot(path=self.shots / f"{name}-{self.theme}-{width}.png", full_page=whole)

    def foreign_tips(self) -> list[str]:
        """Texts of the tab that have a tooltip of another tab's field."""
        return self.page.evaluate(
            """() => Array.from(document.querySelectorAll("#tab_loraclr span, #tab_loraclr button, #tab_loraclr p"))
                .filter((node) => titles[node.textContent] && node.title === titles[node.textContent])
                .map((node) => node.textContent)"""
        )

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    # -- the tab

    def open(self) -> None:
        self.page.click("#tabs > .tab-nav > button:has-text('LoRACLR')")
        self.page.wait_for_selector("#loraclr_generate", state="visible", timeout=MINUTES)
        time.sleep(1.5)

    def listed(self, typed: str) -> list[str]:
        """What the picker offers when something is typed into it."""
        box = self.page.locator("#loraclr_loras input")
        box.click()
        box.fill("")  # what is typed already is not looked for again
        box.fill(typed)
        time.sleep(0.5)
        return self.page.eval_on_selector_all(
            "#loraclr_loras li", f"items => items.filter(i => i.offsetParent).map({OFFERED})"
        )

    def seen_first(self, typed: str) -> list[str]:
        """What the picker offers, from top to bottom."""
        self.listed(typed)
        return self.page.eval_on_selector_all(
            "#loraclr_loras li",
            f"""items => items.filter(i => i.offsetParent)
                .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top).map({OFFERED})""",
        )

    def pick(self, *names: str) -> None:
        box = self.page.locator("#loraclr_loras input")
        for name in names:
            # gradio 3 and 4 name what an item stands for in different attributes
            wanted = ", ".join(
                f"#loraclr_loras li[{attribute}{how}]"
                for attribute in ("data-value", "aria-label")
                for how in (f"='{name}'", f"$='/{name}'", f"^='{name} '", f"*='/{name} '")
            )
            for _ in range(12):  # what is typed before the list is there is not looked for once it is
                box.click()
                box.fill("")
                box.fill(name)
                try:
                    self.page.wait_for_selector(wanted, timeout=MINUTES / 12)
                    break
                except PlaywrightTimeout:
                    box.blur()
            self.page.locator(wanted).first.click()
            self.page.wait_for_selector(f".loraclr-concept[data-lora='{name}']", timeout=MINUTES)
        box.blur()

    def drop(self, name: str) -> None:
        """Take a LoRA out of the selection."""
        self.page.locator(f"#loraclr_loras .token:has-text('{name}') .token-remove").click()
        self.page.wait_for_selector(f".loraclr-concept[data-lora='{name}']", state="detached", timeout=MINUTES)

    def field(self, row: str, name: str) -> Locator:
        return self.page.locator(f".loraclr-concept[data-lora='{row}'] [data-field='{name}']")

    def set_advanced(self, *, picture: bool, **values: float) -> None:
        fold = self.page.locator("#loraclr_advanced > .label-wrap").first
        fold.click()
        for name, value in values.items():
            box = self.page.locator(f"#loraclr_{name} input[type=number]")
            box.fill(str(value))
            box.blur()
        self.page.locator("#loraclr_draw input").set_checked(picture)
        fold.click()

    def quick(self, *, picture: bool = True, **values: float) -> None:
        """Everything as small as it may be."""
        self.page.click("#loraclr_effort label:has-text('Layers')")
        self.set_advanced(picture=picture, **SMALL, **values)

    def check(self) -> str:
        self.page.eval_on_selector_all("#loraclr_view .loraclr-note", "notes => notes.forEach(n => n.dataset.old = 1)")
        self.page.click("#loraclr_check")
        self.page.wait_for_selector("#loraclr_view .loraclr-note:not([data-old])", timeout=2 * MINUTES)
        return self.text("#loraclr_view")

    def wait_for_the_bar(self) -> str:
        self.page.wait_for_function(
            "document.querySelector('#tab_loraclr .loraclr-doing')?.innerText.includes('%')", timeout=2 * MINUTES
        )
        return self.text("#tab_loraclr .loraclr-doing")

    def wait_for_the_result(self, *, picture: bool = True) -> str:
        self.page.wait_for_selector("#loraclr_keep", state="visible", timeout=20 * MINUTES)
        if picture:
            self.page.wait_for_selector("#loraclr_picture img", state="visible", timeout=MINUTES)
        return self.text("#loraclr_view")

    def keep(self, button: str = "keep") -> str:
        self.page.click(f"#loraclr_{button}")
        self.page.wait_for_selector("#loraclr_send", state="visible", timeout=MINUTES)
        time.sleep(3)  # the Lora tabs refresh
        return self.text("#loraclr_log")

    # -- txt2img

    def generate(self, prompt: str | None = None, **settings: str) -> str:
        """Press Generate in txt2img; the hash of the picture's pixels."""
        page = self.page
        page.click("#tabs > .tab-nav > button:has-text('txt2img')")
        if prompt is not None:
            page.locator("#txt2img_prompt textarea").fill(prompt)
        for name, value in {"width": "128", "height": "128", "steps": "4", **settings}.items():
            box = page.locator(f"#txt2img_{name} input[type=number]")
            box.fill(value)
            box.blur()
        before = page.eval_on_selector_all("#txt2img_gallery img", "images => images.map(i => i.src)")
        page.click("#txt2img_generate")
        page.wait_for_function(
            "before => Array.from(document.querySelectorAll('#txt2img_gallery img')).some(i => !before.includes(i.src))",
            arg=before,
            timeout=4 * MINUTES,
        )
        return page.locator("#txt2img_gallery img").first.evaluate(_PIXELS)
