"""What the tab does with what gradio hands over; the components themselves are in test_browser.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from webui_doors import SMALL, Doors, doors  # noqa: F401  (a fixture)
from webui_tab import CHOSEN, TABLE, fields, tab

from lib_loraclr.errors import LoraclrError
from lib_loraclr.merge import MemoryNeeds
from lib_loraclr.request.merge_request import MergeRequest
from lib_loraclr.request.prompts import PromptOptions


def test_the_fields_become_the_request(doors: Doors) -> None:  # noqa: F811
    form, rows = doors.module("form"), doors.module("rows")
    asked = {"bank": "booru", "phrases": "in a red dress\n\n on a horse "}
    values = fields(method="contrastive", effort="thorough", **asked, **{"option.contrastive.negative": 0.2})
    request, names = form.build(rows.Table.parse(json.dumps(TABLE)), values)
    assert names == ("fox", "penguin")
    assert [Path(c.lora).name for c in request.concepts] == ["fox.safetensors", "penguin.safetensors"]
    assert [c.te_weight for c in request.concepts] == [0.5, 1.0] and request.concepts[0].unet_weight == 0.75
    assert [c.trigger for c in request.concepts] == ["sks animal", "bird"]
    assert request.concepts[1].prompts == ("a",) and request.concepts[1].importance == 2.0
    assert request.options["effort"] == "thorough" and request.options["negative"] == 0.2
    assert request.options["layer_steps"] == 5 and isinstance(request.options["layer_steps"], int)
    expected = replace(PromptOptions(), negative="ugly", bank="booru", phrases=("in a red dress", "on a horse"))
    assert request.prompts == expected and request.seed == 3
    assert MergeRequest.from_dict(request.to_dict()) == request


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mb": None}, "memory is empty"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"rank": "big"}, "rank is 'big'"),
        ({"templates": "no trigger"}, "has no {trigger}"),
        ({"method": "contrastive", "option.contrastive.margin": 9.0}, "margin"),
    ],
)
def test_a_wrong_field_is_named(doors: Doors, changes: dict[str, Any], message: str) -> None:  # noqa: F811
    form, rows = doors.module("form"), doors.module("rows")
    with pytest.raises(LoraclrError) as error:
        form.build(rows.Table.parse(json.dumps(TABLE)), fields(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"lora": "big"}, "big cannot be merged: made for SDXL"),
        ({"lora": "nobody"}, "There is no installed LoRA 'nobody'"),
        ({"lora": "fox", "te_weight": ""}, "The text encoder weight of fox is ''"),
        ({"lora": "../../etc/passwd"}, "There is no installed LoRA"),
    ],
)
def test_a_wrong_row_is_refused_with_the_reason(doors: Doors, row: dict[str, Any], message: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    table = json.dumps({"rows": [row]})
    for action in (bound.check, bound.merge):
        shown = action("", table, [row["lora"]], "", False, *values)[0]
        assert "loraclr-error" in shown and message.replace("'", "&#x27;") in shown


def _everything_that_asks(off: Doors) -> list[str]:
    """What each action says that needs the list of LoRAs."""
    bound, values = tab(off)
    return [
        bound.open([])[1],
        bound.refresh([])[1],
        bound.take("<lora:fox:1>", "", "", "")[2],
        bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[0],
        bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)[0],
    ]


def test_without_the_lora_extension_the_tab_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _everything_that_asks(Doors(tmp_path / "Lora", monkeypatch, lora=False))
    assert all("built-in extension Lora is switched off" in text for text in told)


@pytest.mark.parametrize(("version", "name"), [("3.41.2", "_js"), ("4.40.0", "js")])
def test_a_function_in_the_browser_is_named_as_the_gradio_at_hand_does(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    name: str,
) -> None:
    """AUTOMATIC1111's WebUI has gradio 3, Forge gradio 4, which calls the argument `js`."""
    made = doors.module("scripting")
    monkeypatch.setattr(made.gr, "__version__", version, raising=False)
    # with the values of the inputs alone: gradio hands over those of the outputs too, and sends what comes back to the server
    call = "(...values) => loraclrSettle(...values.slice(0, 2))"
    assert made.by_script("loraclrSettle", ["picker", "answered"]) == {name: call}


def test_check_says_what_would_happen(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors, method="contrastive")
    view, efforts = bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)
    for text in ("Ready to merge", "fox", "sks animal", "MIT (fox)", "Time", "RAM", "up to", "tiny.safetensors"):
        assert text in view
    assert [value for _, value in efforts["choices"]] == ["Layers", "Fast", "Balanced", "Thorough"]
    bound, values = tab(doors, method="average")
    efforts = bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[1]
    assert "choices" not in efforts, "a method without efforts leaves them as they are"


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (
            {"te_weight": "0", "unet_weight": "0"},
            "All that fox changes has the weight 0, so nothing of it would be merged",
        ),
        ({"trigger": "ohwx"}, "have the same prompts"),
    ],
)
def test_check_refuses_what_makes_no_sense(doors: Doors, first: dict[str, str], told: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    rows = json.dumps({"rows": [{**TABLE["rows"][0], **first}, {"lora": "penguin", "trigger": "ohwx"}]})
    for action in (bound.check, bound.merge):
        view = action("", rows, CHOSEN, "", False, *values)[0]
        assert told in view and "loraclr-error" in view and "Ready" not in view


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ({"te_weight": "5", "unet_weight": "-1"}, "The UNet weight of fox is -1: below 0"),
        ({"trigger": "sks animal, ohwx"}, "The trigger words of fox (sks animal, ohwx) have those of penguin (ohwx)"),
    ],
)
def test_check_doubts_what_is_hardly_meant(doors: Doors, first: dict[str, str], told: str) -> None:  # noqa: F811
    bound, values = tab(doors)
    rows = json.dumps({"rows": [{**TABLE["rows"][0], **first}, {"lora": "penguin", "trigger": "ohwx"}]})
    view = bound.check("", rows, CHOSEN, "", False, *values)[0]
    assert told in view and "Ready to merge, but look at" in view
    assert view.index(told) < view.index("<table"), "above everything else"
    sane = json.dumps({"rows": [TABLE["rows"][0], {"lora": "penguin", "trigger": "ohwx"}]})
    assert "Ready to merge.<" in bound.check("", sane, CHOSEN, "", False, *values)[0], "control"


def test_check_and_the_times_go_by_the_size_that_the_loras_were_trained_at(doors: Doors) -> None:  # noqa: F811
    doors.lora("small", ss_resolution="(64, 64)", **{"modelspec.trigger_phrase": "tiny"})
    rows, pace = json.dumps({"rows": [{"lora": "small", "trigger": "tiny"}]}), doors.module("pace")
    for typed, size in ((0.0, 64), (192.0, 192)):  # the checkpoint's own is 128
        bound, values = tab(doors, method="contrastive", width=typed, height=typed)
        assert f"{size}×{size}" in bound.check("", rows, ["small"], "", False, *values)[0]
        pace._measured.clear()
        bound.times(["small"], False, *values)
        assert [key[1:] for key in pace._measured] == [(size, size)], "the time is that of the same pictures"


def test_check_finds_the_same_trigger_and_the_same_file(doors: Doors) -> None:  # noqa: F811
    (doors.folder / "copy.safetensors").write_bytes((doors.folder / "fox.safetensors").read_bytes())
    doors.webui.networks.list_available_networks()
    same = [{"lora": "fox", "trigger": "sks"}, {"lora": "copy", "trigger": "sks"}]
    bound, values = tab(doors)
    view = bound.check("", json.dumps({"rows": same}), [row["lora"] for row in same], "", False, *values)[0]
    assert "cannot be merged as it is" in view
    assert "have the same prompts" in view and "copy is the same LoRA as fox: name it once" in view


def test_check_says_of_every_lora_why_it_cannot_be_merged_and_what_of_the_others(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    rows = [{"lora": "big"}, {"lora": "fox", "trigger": "sks animal"}, {"lora": "penguin", "te_weight": "x"}]
    view = bound.check("", json.dumps({"rows": rows}), [row["lora"] for row in rows], "", False, *values)[0]
    assert "cannot be merged as it is" in view and "MIT (fox)" in view
    assert "big cannot be merged: made for SDXL" in view and "text encoder weight of penguin" in view
    assert "Only one LoRA" not in view


def test_check_doubts_a_trigger_that_is_only_a_name_and_prompts_that_call_it(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors, plain="a photo of a penguin\na photo of penguins")
    rows = [{"lora": "penguin", "trigger": "penguin"}, {"lora": "fox", "trigger": "sks animal"}]
    view = bound.check("", json.dumps({"rows": rows}), [row["lora"] for row in rows], "", False, *values)[0]
    assert "penguin names no trigger words" in view and "fox names no trigger" not in view
    assert "a photo of a penguin&#x27; calls penguin" in view and "of penguins&#x27;" not in view


def test_check_refuses_a_memory_budget_that_the_merge_would_refuse(doors: Doors) -> None:  # noqa: F811
    few, enough = 1.0, 4096.0
    for budget, refused in ((few, True), (enough, False), (few, True)):
        bound, values = tab(doors, method="contrastive", memory_mb=budget, height=512.0, width=512.0, paths=64.0)
        told = bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
        assert ("memory budget of 1 MB is too small" in told) is refused
        assert ("Ready to merge" in told) is not refused
    bound, values = tab(doors, method="average", memory_mb=few)
    assert "Ready to merge" in bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[0], "records nothing"


def test_check_reads_the_file_that_merge_would_refuse(doors: Doors) -> None:  # noqa: F811
    (doors.folder / "fox.safetensors").write_bytes(b"no such thing")
    bound, values = tab(doors)
    view = bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
    assert (
        "the file cannot be read as safetensors" in view
        and "fox cannot be merged" in view
        and str(doors.folder) not in view
    )


@pytest.mark.parametrize(("rank", "possible"), [("auto", True), ("4", False)])
def test_check_says_where_the_card_is_too_small(
    doors: Doors,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    rank: str,
    possible: bool,
) -> None:
    check = doors.module("check")
    monkeypatch.setattr(check, "memory_needs", lambda *_, **__: MemoryNeeds(1.0, 700.5, 1.0))
    bound, values = tab(doors, method="contrastive", rank=rank, effort="balanced")
    for free, short in ((700 << 20, True), (701 << 20, False), (None, False)):
        monkeypatch.setattr(check, "free_on_card", lambda _, free=free: free)
        view = bound.check("", json.dumps(TABLE), CHOSEN, "", False, *values)[0]
        told = "The graphics card has 700 MB free, and this merge may need 701 MB" in view and "effort Layers" in view
        assert told is short
        assert ("Ready to merge" in view) is (possible or not short)


def test_from_prompt_takes_tags_weights_and_the_other_words(doors: Doors) -> None:  # noqa: F811
    bound, _ = tab(doors)
    prompt = "sks animal, a castle, <lora:fox:0.7>, <lora:nobody:1> at night"
    picker, taken, message, templates, plain = bound.take(prompt, "{}", "{trigger}", "a cat\na castle, at night")
    assert picker["value"] == ["fox"] and "nobody" in message and "a castle, at night" in message
    assert templates == "{trigger}, a castle, at night\n{trigger}" and plain == "a castle, at night\na cat"
    [row] = doors.module("rows").Table.parse(taken).rows
    assert (row.lora, row["te_weight"], row["trigger"]) == ("fox", 0.7, "sks animal")
    assert "no &lt;lora" in bound.take("a castle", "{}", "", "")[2]
    assert bound.take("<lora:fox:1>", "{}", "as is", "too")[3:] == ["as is", "too"]


def test_block_weights_in_a_tag_are_refused_by_name_and_the_lora_is_taken(doors: Doors) -> None:  # noqa: F811
    bound, _ = tab(doors)
    tags = "<lora:fox:0.7:lbw=MIDD> <lora:penguin:0.5:0.25:lbw=0,0,1:start=5>"
    picker, taken, message, _, _ = bound.take(tags, "{}", "{trigger}", "a cat")
    assert [name.split("/")[-1].split(" ")[0] for name in picker["value"]] == ["fox", "penguin"]
    weights = [(row["te_weight"], row["unet_weight"]) for row in doors.module("rows").Table.parse(taken).rows]
    assert weights == [(0.7, 0.7), (0.5, 0.25)]
    assert "fox: lbw=MIDD is not taken over" in message and "penguin: lbw=0,0,1, start=5 is not" in message
    assert "not taken over" not in bound.take("<lora:fox:0.7>", "{}", "{trigger}", "a cat")[2], "control"


def test_a_seed_of_minus_one_is_another_each_time_and_stands_in_the_result(doors: Doors) -> None:  # noqa: F811
    jobs = doors.module("jobs")
    bound, values = tab(doors, seed=-1.0)
    seeds = []
    for _ in range(2):
        view, _, *_rest = bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)
        seeds.append(jobs.waiting().request.seed)
        assert f"<dt>Seed</dt><dd>{seeds[-1]}</dd>" in view
    assert seeds[0] != seeds[1] and min(seeds) >= 0
    bound, values = tab(doors, seed=-2.0)
    assert "The seed is -2" in bound.merge("", json.dumps(TABLE), CHOSEN, "", False, *values)[0]


def test_from_prompt_again_takes_weights_and_swaps_the_other_words(doors: Doors) -> None:  # noqa: F811
    bound, _ = tab(doors)
    _, taken, _, templates, plain = bound.take("a castle <lora:fox:0.7>", "{}", "{trigger}", "a cat")
    shown = json.dumps({"rows": [{"lora": "fox", "te_weight": "1", "trigger": "mended", "kind": "style"}]})
    _, taken, message, templates, plain = bound.take("at night <lora:fox:0.3>", taken, templates, plain)
    assert templates == "{trigger}, at night\n{trigger}" and plain == "at night\na cat"
    rows = doors.module("rows")
    [row] = rows.selected(["fox"], rows.Table.parse(shown), rows.Table.parse(taken)).rows
    assert (row["te_weight"], row["trigger"], row["kind"]) == (0.3, "mended", "style"), "only weights are the prompt's"
    _, _, _, templates, plain = bound.take("<lora:fox:1>", taken, templates, plain)
    assert templates == "{trigger}" and plain == "a cat", "no other words"


def test_an_answer_says_which_selection_it_is_for(doors: Doors) -> None:  # noqa: F811
    """gradio drops what changes while it waits; the browser asks again where they differ."""
    bound, values = tab(doors, method="contrastive")
    chosen = ["fox", "animals/penguin  ·  pingu"]
    assert json.loads(bound.select("{}", "{}", chosen)[1]) == chosen
    efforts, timed = bound.times(chosen, True, *values)
    assert json.loads(timed) == chosen and len(efforts["choices"]) == 4
    assert [json.loads(answer) for answer in (bound.select("{}", "{}", None)[1], bound.times([], True)[1])] == [
        [],
        [],
    ]
    doors.webui.shared.state.job = "txt2img"
    doors.module("pace")._measured.clear()
    efforts, timed = bound.times(chosen, True, *values)
    assert json.loads(timed) == chosen and "choices" not in efforts, "nothing to say is an answer, too"


def test_a_list_made_anew_leaves_what_is_chosen_meanwhile(doors: Doors) -> None:  # noqa: F811
    bound, _ = tab(doors)
    assert "value" not in bound.refresh(["fox"])[0]
    assert bound.refresh(["fox", "gone"])[0]["value"] == ["fox"]


def test_a_lora_chosen_faster_than_its_row_is_drawn_is_merged_too(doors: Doors) -> None:  # noqa: F811
    bound, values = tab(doors)
    late = {"rows": [row for row in TABLE["rows"] if row["lora"] == "fox"]}
    view = bound.check("", json.dumps(late), ["fox", "animals/penguin  ·  pingu"], "", False, *values)[0]
    assert "<td>fox</td>" in view and "<td>penguin</td>" in view
    view = bound.check("", json.dumps(TABLE), ["fox"], "", False, *values)[0]
    assert "<td>fox</td>" in view and "<td>penguin</td>" not in view, "and one that was taken out is not"


def test_names_are_proposed_that_files_may_have(doors: Doors) -> None:  # noqa: F811
    naming = doors.module("naming")
    assert naming.proposed(["what? a fox"], "lora") == "what_ a fox"
    assert naming.proposed(["fox"], "lora") == "fox-2", "a free one"
    assert naming.proposed(list("abcd"), "lora") == "a-b-and-2-more"
