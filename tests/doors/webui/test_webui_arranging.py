"""What is sent to txt2img with an arrangement; the infotext is read back as the WebUI reads one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from webui_doors import Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, merged, tab

#: as the WebUI 1.10 finds parameters in the last line (`modules/infotext_utils.py`)
_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NOW = json.dumps({"Negative prompt": "ugly,\nblurry", "Sampler": "Euler a", "Schedule type": "Karras", "Seed": "7"})


def read(infotext: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt, parameters."""
    *lines, last = infotext.split("\n")
    found = {key: json.loads(value) if value.startswith('"') else value for key, value in _PARAMETER.findall(last)}
    assert len(found) >= 3, "else the WebUI takes the line for a part of the prompt"
    text = "\n".join(lines)
    prompt, negative = text.split("\nNegative prompt:")
    return prompt, negative.strip(), found


def sent(doors: Doors, arrangement: str, *keys: str, **rows: Any) -> list[str]:  # noqa: F811
    """What an arrangement gives where extensions have fields of these names."""
    doors.webui.infotext_utils.paste_fields["txt2img"] = {"fields": [("component", key) for key in keys]}
    bound, values = tab(doors, quality="8k")
    told = {"taken": "", "rows": [{"lora": name, **_ROWS[name], **rows.get(name, {})} for name in CHOSEN]}
    seen = dict(
        zip(doors.module("notes").SHOWN, bound.merge("", json.dumps(told), CHOSEN, "", False, *values), strict=True)
    )
    bound.keep(seen["job"], "", "")
    return bound.infotext(seen["job"], arrangement, NOW)


_ROWS = {"fox": {"trigger": "sks animal"}, "penguin": {"trigger": "ohwx bird"}}


def test_regional_prompter_gets_a_region_for_each_concept(doors: Doors) -> None:  # noqa: F811
    text, note = sent(doors, "Side by side", "Prompt", "RP Active", "RP Ratios")
    prompt, negative, fields = read(text)
    tag = "<lora:fox-penguin:1>"
    assert prompt == f"{tag} a photo of sks animal, 8k BREAK\na photo of ohwx bird, 8k", (
        "the tag once: twice is twice as much"
    )
    assert negative == "ugly,\nblurry" and fields["Schedule type"] == "Karras", "what stands there stays"
    assert fields["Sampler"] == "Euler a" and "Seed" not in fields, "and what is not named is not touched"
    assert fields["RP Active"] == "True" and fields["RP Ratios"] == "1,1" and fields["RP Matrix submode"] == "Columns"
    assert (
        fields["RP Use Common"] == "False" and fields["RP Use Base"] == "False" and fields["RP Divide mode"] == "Matrix"
    )
    assert fields["Size"] == "128x64" and fields["Clip skip"] == "1" and "forge_couple" not in fields
    assert "Regional Prompter will be switched on" in note and "no DDIM" in note


def test_forge_couple_gets_a_line_for_each_concept(doors: Doors) -> None:  # noqa: F811
    text, note = sent(doors, "Side by side", "forge_couple", penguin={"kind": "subject"})
    prompt, _, fields = read(text)
    assert prompt.split("\n") == ["<lora:fox-penguin:1>, 8k", "a photo of sks animal", "a photo of ohwx bird"]
    assert fields["forge_couple"] == "True" and fields["forge_couple_background"] == "First Line"
    assert fields["forge_couple_direction"] == "Horizontal" and not [key for key in fields if key.startswith("RP ")]
    assert "Forge Couple will be switched on" in note and "DDIM" not in note


def test_without_either_the_prompt_says_it_and_a_sentence_why(doors: Doors) -> None:  # noqa: F811
    text, note = sent(doors, "Side by side", "Prompt")
    prompt, _, fields = read(text)
    assert prompt == "sks animal and ohwx bird, <lora:fox-penguin:1>, 8k" and fields["Size"] == "128x64"
    assert "Neither Regional Prompter" in note and not [key for key in fields if key.startswith(("RP", "forge"))]


def test_a_style_is_common_to_all_and_too_few_subjects_are_said(doors: Doors) -> None:  # noqa: F811
    text, message = sent(doors, "Side by side", "RP Active", penguin={"kind": "style"})
    assert text == "" and "takes 2 subjects, and the merge has 1" in message
    text, message = sent(doors, "Three columns", "RP Active")
    assert text == "" and "takes 3 subjects" in message
    assert "no result any more" in tab(doors)[0].infotext("nobody", "Side by side", "{}")[1]


def test_the_choice_says_at_once_what_it_will_do(doors: Doors) -> None:  # noqa: F811
    bound, _ = tab(doors)
    assert bound.arrangement("One prompt") == "" and "Neither" in bound.arrangement("Three columns")
    doors.webui.infotext_utils.paste_fields["txt2img"] = {"fields": [("x", "RP Active"), ("y", print)]}
    assert "Regional Prompter will" in bound.arrangement("Three columns")


@pytest.mark.parametrize(("name", "told"), [("fox", ""), ("nobody", "no installed LoRA")])
def test_a_card_adds_its_lora_to_what_is_chosen(doors: Doors, name: str, told: str) -> None:  # noqa: F811
    bound, _ = tab(doors)
    picker, message = bound.add(name, ["animals/penguin  ·  pingu"])
    assert told in message
    if not told:
        assert picker["value"] == ["animals/penguin  ·  pingu", "fox"]
        assert bound.add(name, picker["value"])[0]["value"] == picker["value"], "once"


def test_control_a_merge_is_kept_under_the_name_that_is_sent(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    seen = merged(doors, bound, values)
    assert "fox-penguin" in bound.keep(seen["job"], "", "")[0]
