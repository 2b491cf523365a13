"""What a person does around a merge: adds from a card, tries a prompt, sends it with an arrangement, begins from the history."""

from __future__ import annotations

import time
from typing import Any

from browser_page import MINUTES, OFFERED, Way


def studio(way: Way) -> dict[str, Any]:
    """Cards, Check, a prompt that is tried, Keep, an arrangement, the history, and the plot's axes."""
    seen = {"card": _from_a_card(way)}
    way.pick("penguin")
    way.set_advanced(picture=False)
    way.page.locator("#loraclr_advanced > .label-wrap").first.click()
    way.page.click("#loraclr_method label:has-text('Average')")  # which records nothing, and takes a moment
    way.page.locator("#loraclr_advanced > .label-wrap").first.click()
    seen["check"] = way.check()
    way.shot("20-overlap")
    way.page.click("#loraclr_generate")
    way.wait_for_the_result(picture=False)
    seen |= {"tried": _tried(way), "overflow": way.overflow(), "tips": way.foreign_tips()}
    seen["kept"] = way.keep()
    return {**seen, **_arranged(way), **_again(way), "axes": _axes(way)}


def further(way: Way) -> dict[str, Any]:
    """A style on one of the subjects, outfits; a result that is refined further, and the way back."""
    page = way.page
    way.open()
    way.pick("fox-face", "penguin", "style-clay")
    way.field("style-clay", "trigger").fill("clay style")
    shown = page.locator("[data-lora='style-clay'] .loraclr-applied")
    seen: dict[str, Any] = {"style": shown.is_visible()}
    page.locator("[data-lora='style-clay'] [data-subject='penguin'] input").uncheck()
    seen["applied"] = way.field("style-clay", "applied_to").input_value()
    way.field("style-clay", "kind").select_option("subject")
    seen["subject"] = shown.is_visible()
    way.field("style-clay", "kind").select_option("style")
    page.locator("[data-lora='fox-face'] .loraclr-more summary").click()
    way.field("fox-face", "outfits").fill("sks animal in red")
    way.shot("27-rows")
    page.click("#loraclr_effort label:has-text('Fast')")
    way.set_advanced(picture=False, paths=2, steps=2, contrastive_steps=2)
    page.click("#loraclr_generate")
    way.wait_for_the_result(picture=False)
    page.locator("#loraclr_further > .label-wrap").first.click()
    page.locator("#loraclr_further_steps input").fill("1")
    page.locator("#loraclr_further_steps input").blur()
    page.click("#loraclr_further_button")
    page.wait_for_selector("#loraclr_view th:has-text('Before')", timeout=20 * MINUTES)
    way.shot("28-further")
    seen["refined"] = way.text("#loraclr_view")
    page.click("#loraclr_other")
    page.wait_for_selector("#loraclr_view th:has-text('Before')", state="detached", timeout=MINUTES)
    seen["former"] = way.text("#loraclr_view")
    return {**seen, "kept": way.keep(), "overflow": way.overflow()}


def night(way: Way) -> dict[str, Any]:
    """Two merges one after the other, a third that is taken out, and the page loaded anew meanwhile."""
    page = way.page
    way.open()
    way.pick("fox-face", "penguin")
    way.quick(picture=False)
    page.locator("#loraclr_queue > .label-wrap").first.click()
    _enqueue(way, "")
    # what is asked for later is another merge
    page.locator("#loraclr_advanced > .label-wrap").first.click()
    page.click("#loraclr_method label:has-text('Average')")
    page.locator("#loraclr_advanced > .label-wrap").first.click()
    for name in ("fox-face", "never"):
        _enqueue(way, name)
    page.wait_for_selector(f"{_QUEUED} >> text=%", timeout=2 * MINUTES)
    way.shot("29-queue")
    seen: dict[str, Any] = {"queued": _in_queue(way)}
    page.locator(_QUEUED, has_text="never").locator(".loraclr-unqueue").click()
    page.wait_for_selector(f"{_QUEUED}:has-text('never')", state="detached", timeout=MINUTES)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_prompt textarea", timeout=2 * MINUTES)
    way.open()
    page.wait_for_function(
        "document.querySelector('#loraclr_queue_view .loraclr-queue')?.dataset.kept === '2'", timeout=20 * MINUTES
    )
    way.shot("30-queue")
    seen |= {"kept": _in_queue(way), "overflow": way.overflow()}
    time.sleep(5)  # until the picker is filled anew: gradio's is confused where somebody types just then
    name = seen["kept"][1].split("kept as ")[-1].split()[0]
    seen |= {"name": name, "offered": way.listed(name)}
    page.locator("#loraclr_loras input").blur()
    page.locator("#loraclr_history > .label-wrap").first.click()
    seen["history"] = way.text("#loraclr_history_view")
    page.click("#loraclr_queue_view .loraclr-empty-queue")
    page.wait_for_selector(_QUEUED, state="detached", timeout=MINUTES)
    return seen


def added(way: Way) -> dict[str, Any]:
    """A merge that is interrupted and goes on; then a concept is added to what was kept; what was recorded is deleted."""
    page = way.page
    seen = _interrupted_and_gone_on(way)
    name = seen["kept"].split("Kept as ")[1].split(". ")[0]
    page.click("#loraclr_add_to_kept")
    page.wait_for_selector("#loraclr_adding .loraclr-note", timeout=MINUTES)
    way.pick("pizza")
    seen |= {"line": way.text("#loraclr_adding"), "check": way.check()}
    way.shot("32-adding")
    page.click("#loraclr_generate")
    way.wait_for_the_result(picture=False)
    seen["result"] = way.text("#loraclr_view")
    way.shot("33-added")
    page.click("#loraclr_discard")
    page.click("#loraclr_adding .loraclr-add-to-nothing")
    page.wait_for_selector("#loraclr_adding .loraclr-note", state="detached", timeout=MINUTES)
    for chosen in ("fox-face", "penguin"):
        way.drop(chosen)
    way.pick(name)
    way.shot("34-merged-row")
    page.click(f".loraclr-concept[data-lora='{name}'] .loraclr-add-to")
    page.wait_for_selector(".loraclr-concept[data-lora='penguin']", timeout=MINUTES)
    page.wait_for_selector("#loraclr_adding .loraclr-note", timeout=MINUTES)
    seen["rows"] = page.eval_on_selector_all(".loraclr-concept", "rows => rows.map(row => row.dataset.lora)")
    return {**seen, **_emptied(way), "name": name, "overflow": way.overflow()}


def _interrupted_and_gone_on(way: Way) -> dict[str, Any]:
    page = way.page
    way.open()
    way.pick("fox-face", "penguin")
    page.click("#loraclr_effort label:has-text('Fast')")
    way.set_advanced(picture=False, paths=2, steps=2, contrastive_steps=12)
    page.click("#loraclr_generate")
    wait_for_doing(way, "step 6 of 12")
    page.evaluate("document.getElementById('loraclr_interrupt').click()")  # out of sight where the page is narrow
    page.wait_for_function("document.querySelector('#loraclr_view').innerText.includes('Interrupted')", timeout=MINUTES)
    seen: dict[str, Any] = {"interrupted": way.text("#loraclr_view")}
    page.click("#loraclr_generate")
    wait_for_doing(way, "goes on from before")
    seen["doing"] = way.text("#tab_loraclr .loraclr-doing")
    way.wait_for_the_result(picture=False)
    seen["kept"] = way.keep()
    way.shot("31-kept")
    return seen


def _emptied(way: Way) -> dict[str, str]:
    """What merges keep on the disk, before and after the button is pressed."""
    page = way.page
    page.locator("#loraclr_advanced > .label-wrap").first.click()
    held = way.text("#loraclr_work_told")
    page.locator("#loraclr_work_empty").scroll_into_view_if_needed()
    way.shot("35-work")
    page.click("#loraclr_work_empty")
    page.wait_for_selector("#loraclr_work_told:has-text('nothing')", timeout=MINUTES)
    return {"held": held, "emptied": way.text("#loraclr_work_told")}


def wait_for_doing(way: Way, text: str) -> str:
    """Until the line beside the bar says so; what it says."""
    way.page.wait_for_function(
        "text => document.querySelector('#tab_loraclr .loraclr-doing')?.innerText.includes(text)",
        arg=text,
        timeout=10 * MINUTES,
        polling=50,
    )
    return way.text("#tab_loraclr .loraclr-doing")


_QUEUED = "#loraclr_queue_view .loraclr-queued"


def _enqueue(way: Way, name: str) -> None:
    before = way.page.locator(_QUEUED).count()
    way.page.locator("#loraclr_queue_name input, #loraclr_queue_name textarea").first.fill(name)
    way.page.click("#loraclr_queue_add")
    way.page.wait_for_function(
        f"document.querySelectorAll('{_QUEUED}').length > {before}",
        timeout=MINUTES,
    )


def _in_queue(way: Way) -> list[str]:
    """Name and state of each merge."""
    return way.page.eval_on_selector_all(f"{_QUEUED} > div", "rows => rows.map(row => row.innerText)")


def _from_a_card(way: Way) -> list[str]:
    """The button on the card of a LoRA; what is chosen then."""
    page = way.page
    page.click("#txt2img_extra_tabs > .tab-nav > button:has-text('Lora')")
    card = "#txt2img_lora_cards .card[data-name='fox-face']"
    page.wait_for_selector(f"{card} .loraclr-card", state="attached", timeout=MINUTES)
    page.locator(card).hover()
    way.shot("21-card", whole=False)
    page.locator(f"{card} .loraclr-card").click()
    page.wait_for_selector(".loraclr-concept[data-lora='fox-face']", timeout=MINUTES)
    assert page.locator("#txt2img_prompt textarea").input_value() == "", "the card itself was not clicked"
    return page.eval_on_selector_all(".loraclr-concept", "rows => rows.map(row => row.dataset.lora)")


def _tried(way: Way) -> dict[str, Any]:
    """A prompt of one's own, beside the base model."""
    page = way.page
    page.locator("#loraclr_try > .label-wrap").first.click()
    page.locator("#loraclr_try_prompt textarea").fill("a photo of sks animal on a black background")
    choose(way, "loraclr_try_against", "The base model")
    page.locator("#loraclr_try_how > .label-wrap").first.click()
    for name, value in {"pictures": "2", "steps": "6", "seed": "5"}.items():
        box = page.locator(f"#loraclr_try_{name} input[type=number]")
        box.fill(value)
        box.blur()
    size = page.locator("#loraclr_try_width input[type=number]").input_value()
    page.click("#loraclr_try_button")
    page.wait_for_selector("#loraclr_tried .loraclr-ab", timeout=4 * MINUTES)
    slider = page.locator("#loraclr_tried .loraclr-ab input").first
    slider.evaluate("slider => {slider.value = 20; slider.dispatchEvent(new Event('input', {bubbles: true}));}")
    way.shot("22-tried")
    return {
        "pictures": page.locator("#loraclr_tried img").count(),
        "width": size,
        "at": page.locator("#loraclr_tried .loraclr-ab").first.evaluate(
            "ab => ab.style.getPropertyValue('--loraclr-at')"
        ),
        "text": way.text("#loraclr_tried"),
    }


def choose(way: Way, dropdown: str, value: str) -> None:
    """One of a gradio dropdown's choices."""
    box = way.page.locator(f"#{dropdown} input")
    box.click()
    wanted = ", ".join(f"#{dropdown} li[{attribute}='{value}']" for attribute in ("data-value", "aria-label"))
    way.page.locator(wanted).first.click()
    box.blur()


def _arranged(way: Way) -> dict[str, Any]:
    """Side by side into txt2img."""
    page = way.page
    page.locator("#txt2img_neg_prompt textarea").evaluate("field => {field.value = 'ugly'; updateInput(field);}")
    page.click("#tabs > .tab-nav > button:has-text('txt2img')")
    page.click("#txt2img_extra_tabs > .tab-nav > button:has-text('Generation')")
    choose(way, "txt2img_sampling", "Euler")
    way.open()
    page.click("#loraclr_arrangement label:has-text('Side by side')")
    page.wait_for_selector("#loraclr_arrangement_note p", timeout=MINUTES)
    seen = {"note": way.text("#loraclr_arrangement_note")}
    way.shot("23-arranged")
    page.click("#loraclr_send")
    page.wait_for_selector("#txt2img_generate", state="visible", timeout=MINUTES)
    page.wait_for_function(
        "document.querySelector('#txt2img_prompt textarea').value.includes('lora:')", timeout=MINUTES
    )
    seen["prompt"] = page.locator("#txt2img_prompt textarea").input_value()
    seen["negative"] = page.locator("#txt2img_neg_prompt textarea").input_value()
    seen["sampler"] = page.locator("#txt2img_sampling input").input_value()
    seen["width"] = page.locator("#txt2img_width input[type=number]").input_value()
    common = page.locator("#RP_usecommont2i input")
    seen["regions"] = common.is_checked() if common.count() else None
    way.shot("24-sent")
    if common.count():
        way.generate()
        seen["infotext"] = way.text("#html_info_txt2img")
        way.shot("26-regions")
    return seen


def _again(way: Way) -> dict[str, Any]:
    """The form filled from the history."""
    page = way.page
    way.open()
    for name in ("fox-face", "penguin"):
        way.drop(name)
    page.locator("#loraclr_history > .label-wrap").first.click()
    page.wait_for_selector("#loraclr_history_view .loraclr-made", timeout=MINUTES)
    seen = {"history": way.text("#loraclr_history_view")}
    page.locator("#loraclr_history_view .loraclr-again").first.click()
    page.wait_for_selector(".loraclr-concept[data-lora='penguin']", timeout=MINUTES)
    time.sleep(1)
    way.shot("25-history")
    seen["rows"] = page.eval_on_selector_all(".loraclr-concept", "rows => rows.map(row => row.dataset.lora)")
    seen["method"] = page.locator("#loraclr_method input:checked").input_value()
    return seen


def _axes(way: Way) -> list[str]:
    """What the WebUI's plot offers, of ours."""
    page = way.page
    page.click("#tabs > .tab-nav > button:has-text('txt2img')")
    page.click("#txt2img_extra_tabs > .tab-nav > button:has-text('Generation')")
    choose(way, "txt2img_script_container #script_list", "X/Y/Z plot")
    page.locator("#script_txt2img_xyz_plot_x_type input").click()
    page.locator("#script_txt2img_xyz_plot_x_type input").fill("LoRACLR")
    time.sleep(1)
    shown = f"items => items.filter(i => i.offsetParent).map({OFFERED})"
    return page.eval_on_selector_all("#script_txt2img_xyz_plot_x_type li", shown)
