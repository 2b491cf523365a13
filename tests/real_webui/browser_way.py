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

from browser_compare import comparison
from browser_host import anew, bare, install, leave, off, reload, restart, settings, vanilla
from browser_hostile import hostile
from browser_page import MINUTES, OFFERED, Way
from browser_studio import added, further, night, studio
from playwright.sync_api import sync_playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

#: the name that is proposed for what `whole` merges
KEPT = "fox-face-penguin-style-mono"


def whole(way: Way) -> dict[str, Any]:
    """Open, pick, check, merge, see the result, keep, send to txt2img, generate."""
    page, seen = way.page, {}
    way.open()
    way.shot("1-empty")
    way.pick("fox-face", "penguin")
    seen["triggers"] = [way.field(name, "trigger").input_value() for name in ("fox-face", "penguin")]
    seen["pictures"] = page.eval_on_selector_all(
        "img.loraclr-thumb", "images => images.map(i => [i.complete, i.naturalWidth])"
    )
    way.field("penguin", "te_weight").fill("0.9")
    way.pick("style-mono")
    seen["edited"] = way.field("penguin", "te_weight").input_value()
    seen["kind"] = way.field("style-mono", "kind").input_value()
    page.locator("[data-all='weight']").fill("0.8")
    seen["bulk"] = [field.input_value() for field in page.locator(".loraclr-concept [data-field='unet_weight']").all()]
    return {**seen, **_merge(way), **_use(way)}


def _merge(way: Way) -> dict[str, Any]:
    way.quick()
    seen = {"check": way.check()}
    way.shot("2-checked")
    way.page.click("#loraclr_generate")
    way.page.wait_for_selector("#tab_loraclr .progressDiv", timeout=MINUTES)
    seen["bar"] = way.wait_for_the_bar()
    way.shot("3-running")
    seen["result"] = way.wait_for_the_result()
    way.shot("4-result")
    way.drop("style-mono")  # what is chosen next is another merge
    seen["name"] = way.page.locator("#loraclr_name input").input_value()
    return seen


def _use(way: Way) -> dict[str, Any]:
    page = way.page
    seen = {"kept": way.keep()}
    seen["cards"] = page.eval_on_selector_all("#txt2img_lora_cards .card", "cards => cards.map(c => c.dataset.name)")
    seen["card"] = page.locator(f"#txt2img_lora_cards .card[data-name='{KEPT}']").evaluate("card => card.outerHTML")
    way.shot("5-kept")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#loraclr_copy")
    page.wait_for_selector("#loraclr_copy:has-text('Copied')", timeout=MINUTES)
    seen["copied"] = page.evaluate("navigator.clipboard.readText()")
    page.context.clear_permissions()  # what was not granted was denied, which the WebUI complains of in the console
    seen["folder"] = page.locator("#loraclr_folder").is_visible()
    page.click("#loraclr_send")
    page.wait_for_selector("#txt2img_generate", state="visible", timeout=MINUTES)
    seen["prompt"] = page.locator("#txt2img_prompt textarea").input_value()
    way.generate()
    seen["infotext"] = way.text("#html_info_txt2img")
    return seen


def efforts(way: Way) -> dict[str, Any]:
    """The same two merged at each effort, each kept and drawn with."""
    page, found = way.page, []
    way.open()
    way.pick("penguin", "guitar")
    for effort in os.environ["LORACLR_EFFORTS"].split(","):
        page.click(f"#loraclr_effort label:has-text('{effort}')")
        seen = {"check": way.check()}
        page.click("#loraclr_generate")
        way.wait_for_the_bar()
        seen["result"] = way.wait_for_the_result()
        way.shot(f"16-{effort}")
        page.locator("#loraclr_name input").fill(f"penguin-guitar-{effort.lower()}")
        page.locator("#loraclr_name input").blur()
        seen["kept"] = way.keep()
        page.click("#loraclr_send")
        page.wait_for_selector("#txt2img_generate", state="visible", timeout=MINUTES)
        seen["prompt"] = page.locator("#txt2img_prompt textarea").input_value()
        seen["with"] = way.generate(seed="7", steps="12")
        seen["infotext"] = way.text("#html_info_txt2img")
        way.shot(f"17-{effort}")
        seen["without"] = way.generate(seen["prompt"].rpartition(",")[0], seed="7", steps="12")
        found.append(seen)
        way.open()
    return {"efforts": found}


def overwrite(way: Way) -> dict[str, Any]:
    """Two merges under one name; the picture made with it before, after, and when the first is put back."""
    page, seen = way.page, {}
    prompt = {"prompt": "ohwx bird, <lora:again:1>", "seed": "7"}
    for first, partner in ((True, "penguin"), (False, "fox-face")):
        way.open()
        if not first:
            way.drop("penguin")
        way.pick(*(["pizza"] if first else []), partner)
        if first:
            way.quick(picture=False)
        page.click("#loraclr_generate")
        way.wait_for_the_result(picture=False)
        page.locator("#loraclr_name input").fill("../again")
        page.locator("#loraclr_name input").blur()
        page.wait_for_selector("#loraclr_name_note .loraclr-error", timeout=MINUTES)
        page.locator("#loraclr_name input").fill("again")
        page.locator("#loraclr_name input").blur()
        page.wait_for_selector("#loraclr_name_note .loraclr-error", state="detached", timeout=MINUTES)
        if first:
            seen["replace offered at once"] = page.locator("#loraclr_replace").is_visible()
            way.keep()
        else:
            page.click("#loraclr_keep")
            page.wait_for_selector("#loraclr_replace", state="visible", timeout=MINUTES)
            seen["refused"] = way.text("#loraclr_log")
            way.shot("9-replace")
            seen["untouched"] = way.generate(**prompt)
            way.open()
            seen["kept"] = way.keep("replace")
        seen["first" if first else "second"] = way.generate(**prompt)
    way.open()
    page.click("#loraclr_put_back")
    page.wait_for_selector("#loraclr_log:has-text('Put back')", timeout=MINUTES)
    return {**seen, "put back": way.generate(**prompt)}


def many(way: Way) -> dict[str, Any]:
    """Hundreds of LoRAs, put there while the WebUI runs."""
    begun = time.monotonic()
    way.open()
    way.page.click("#loraclr_refresh")
    way.page.wait_for_function("!document.querySelector('#loraclr_loras .generating')", timeout=MINUTES)
    deadline = time.monotonic() + 60
    while len(way.listed("number-")) < 300 and time.monotonic() < deadline:
        time.sleep(0.2)
    seen: dict[str, Any] = {"seconds": time.monotonic() - begun, "all": len(way.listed("number-"))}
    seen["folder"] = way.listed("shelf-3/")
    seen["one"] = way.listed("number-123")
    way.shot("10-many")
    way.pick("number-123")
    seen["trigger"] = way.field("number-123", "trigger").input_value()
    return seen


def family(way: Way) -> dict[str, Any]:
    """On an SDXL checkpoint: a LoRA for SD1 is marked and refused, two for SDXL are merged."""
    page = way.page
    way.open()
    page.click("#loraclr_refresh")
    time.sleep(2)
    seen: dict[str, Any] = {"listed": way.listed("")}
    way.pick("one", "two", "old")
    seen["row"] = way.text(".loraclr-concept[data-lora='old']")
    seen["refused"] = way.check()
    way.shot("11-family")
    way.drop("old")
    way.quick(picture=False, width=128, height=128)
    seen["checked"] = way.check()
    page.click("#loraclr_generate")
    seen["result"] = way.wait_for_the_result(picture=False)
    way.shot("12-sdxl")
    seen["kept"] = way.keep()
    seen["folder"] = page.locator("#loraclr_folder").is_visible()
    seen["cards"] = page.eval_on_selector_all("#txt2img_lora_cards .card", "cards => cards.map(c => c.dataset.name)")
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
    way.quick(picture=False)
    page.keyboard.press("Control+Enter")
    way.wait_for_the_bar()
    begun = time.monotonic()
    page.keyboard.press("Escape")
    page.wait_for_selector("#loraclr_interrupting", state="visible", timeout=MINUTES)
    seen["acknowledged"] = time.monotonic() - begun
    page.wait_for_function("document.querySelector('#loraclr_view').innerText.includes('Interrupted')", timeout=MINUTES)
    page.wait_for_selector("#loraclr_interrupting", state="hidden", timeout=MINUTES)
    seen["interrupted"] = way.text("#loraclr_view")
    page.keyboard.press("Control+Enter")
    seen["doing"] = way.wait_for_the_bar()
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
    time.sleep(3)
    way.open()
    # the bar of the merge that went on, unless it is over by now
    page.wait_for_function(
        "document.querySelector('#tab_loraclr .progressDiv') || document.querySelector('#loraclr_discard')?.offsetParent",
        timeout=MINUTES,
    )
    page.wait_for_selector(".loraclr-concept[data-lora='pizza']", timeout=MINUTES)
    seen["rows"] = [
        [way.field(row, name).input_value() for name in ("te_weight", "unet_weight")] for row in ("penguin", "pizza")
    ]
    page.wait_for_selector("#loraclr_discard", state="visible", timeout=20 * MINUTES)
    seen["restored"] = way.text("#loraclr_view")
    page.click("#loraclr_discard")
    page.wait_for_selector("#loraclr_discard", state="hidden", timeout=MINUTES)
    seen["discarded"] = way.text("#loraclr_view")
    return seen


def hasty(way: Way) -> dict[str, Any]:
    """Three LoRAs chosen before the first is answered; Ctrl+Enter and Esc in the picker; sent beside the tags it was made of."""
    page = way.page
    page.locator("#txt2img_prompt textarea").fill(
        "a castle, <lora:penguin:0.7>, sks animals <lora:pizza:1> <lora:style-clay:1>"
    )
    way.open()
    box = page.locator("#loraclr_loras input")
    box.click()
    page.eval_on_selector_all(
        "#loraclr_loras li",
        "(items, names) => names.forEach((name) => {"
        f"    const item = items.find((i) => {OFFERED}(i) === name);"
        "    item.dispatchEvent(new MouseEvent('mousedown', {bubbles: true, cancelable: true}));"
        "})",
        ["fox-face", "penguin", "pizza"],
    )
    tokens = page.locator("#loraclr_loras .token")
    seen: dict[str, Any] = {"chosen": tokens.count()}
    page.wait_for_function("document.querySelectorAll('.loraclr-concept').length === 3", timeout=MINUTES)
    box.blur()
    way.quick(picture=False)
    box.click()
    box.fill("guitar")
    page.keyboard.press("Control+Enter")
    way.wait_for_the_bar()
    seen["after Ctrl+Enter"] = tokens.count()
    box.click()
    page.wait_for_selector("#loraclr_loras ul.options", timeout=MINUTES)
    page.keyboard.press("Escape")
    page.wait_for_selector("#loraclr_loras ul.options", state="detached", timeout=MINUTES)
    seen["interrupted"] = page.locator("#loraclr_interrupting").is_visible()
    way.wait_for_the_result(picture=False)
    seen["name"] = page.locator("#loraclr_name input").input_value()
    way.keep()
    page.click("#loraclr_send")
    page.wait_for_selector("#txt2img_generate", state="visible", timeout=MINUTES)
    seen["prompt"] = page.locator("#txt2img_prompt textarea").input_value()
    return seen


def looks(way: Way) -> dict[str, Any]:
    """The tab as it is, narrow or light; nothing is merged."""
    way.open()
    seen: dict[str, Any] = {"octopus": way.seen_first("o")[0]}
    way.page.keyboard.press("Enter")
    way.page.wait_for_selector(".loraclr-concept[data-lora='octopus']", timeout=MINUTES)
    way.drop("octopus")
    way.pick("fox-face", "penguin", "style-mono")
    time.sleep(3)
    seen["labels"] = way.page.eval_on_selector_all(
        "[data-lora='penguin'] .loraclr-cell > small",
        "labels => labels.filter(l => l.offsetParent).map(l => l.innerText)",
    )
    one, two = (way.field("penguin", name) for name in ("te_weight", "unet_weight"))
    one.fill("0.4")
    seen["one weight"] = [one.input_value(), two.input_value(), two.is_visible()]
    way.page.locator("[data-lora='penguin'] .loraclr-split").click()
    two.fill("0.7")
    seen["two weights"] = [one.input_value(), two.input_value(), two.is_visible()]
    way.check()
    way.shot("6-looks")
    way.page.locator("#loraclr_advanced > .label-wrap").first.click()
    way.page.locator("#loraclr_prompts > .label-wrap").first.click()
    way.page.locator(".loraclr-concept .loraclr-more summary").first.click()
    way.shot("7-advanced")
    untold = "folds => folds.filter(fold => !fold.title).map(fold => fold.innerText)"
    time.sleep(1.5)  # the WebUI gives its tooltips after a second
    return {
        **seen,
        "tips": way.foreign_tips(),
        "overflow": way.overflow(),
        "untold": way.page.eval_on_selector_all("#tab_loraclr .label-wrap", untold),
    }


WAYS = {
    **{
        way.__name__: way
        for way in (
            whole,
            efforts,
            overwrite,
            many,
            family,
            keyboard,
            hasty,
            looks,
            install,
            reload,
            anew,
            leave,
            restart,
            vanilla,
            off,
            bare,
            settings,
            studio,
            further,
            hostile,
            night,
            added,
            comparison,
        )
    },
    "narrow": looks,
    "narrow studio": studio,
    "narrow further": further,
    "narrow night": night,
    "narrow added": added,
    "narrow comparison": comparison,
}


def main() -> None:
    url, name = sys.argv[1:3]
    shots = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    theme = os.environ.get("LORACLR_THEME", "dark")
    width = 390 if name.startswith("narrow") else 1280
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
