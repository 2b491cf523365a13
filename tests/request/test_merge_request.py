"""The request: JSON both ways, every refusal in its own words, and LoRAs as they are written in a prompt."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions, parse_lora_argument
from lib_loraclr.request.prompts import PromptOptions

PLAIN = MergeRequest((Concept("fox.safetensors"),))

#: nothing in it is a default, so that a field which JSON loses is seen
FULL = MergeRequest(
    concepts=(
        Concept("loras/fox.safetensors", 0.5, -0.25, "sks animal", "style", 2.0, ("a fox", "sks animal, „outdoors“")),
        Concept("mono.safetensors"),
    ),
    method="ridge",
    options={"ridge": 0.5},
    rank="32",
    kept=0.9,
    save_as="full",
    precision="fp32",
    seed=11,
    memory_mb=256,
    prompts=PromptOptions(("{trigger}!",), ("a cat",), "best quality", "blurry", "{second}, {first}"),
    recording=RecordingOptions(3, 5, 16, 7.5, 128, 256),
)


def concept(**changes: Any) -> dict[str, Any]:
    return {"concepts": (dataclasses.replace(PLAIN.concepts[0], **changes),)}


def recording(**changes: Any) -> dict[str, Any]:
    return {"recording": RecordingOptions(**changes)}


def prompts(**changes: Any) -> dict[str, Any]:
    return {"prompts": PromptOptions(**changes)}


def test_json_gives_back_the_very_request() -> None:
    for field in dataclasses.fields(MergeRequest):
        assert getattr(FULL, field.name) != getattr(PLAIN, field.name), f"{field.name} is not put to the test"
    assert MergeRequest.from_json(json.dumps(FULL.to_dict())) == FULL


def test_what_json_leaves_out_keeps_its_default() -> None:
    assert MergeRequest.from_json('{"concepts": [{"lora": "fox.safetensors"}]}') == PLAIN


def test_a_rank_may_be_a_number_in_json() -> None:
    assert MergeRequest.from_dict({"rank": 8}).rank == "8"


@pytest.mark.parametrize("request_", [PLAIN, FULL], ids=["plain", "full"])
def test_a_good_request_passes(request_: MergeRequest) -> None:
    request_.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": ()}, "There is nothing to merge: name at least one LoRA"),
        ({"concepts": PLAIN.concepts * 3}, r"fox\.safetensors is named 3 times: name it once, and raise its weight"),
        (concept(kind="subjct"), "no kind of concept 'subjct': did you mean 'subject'"),
        (concept(te_weight=math.nan), "te_weight of fox is nan: give a finite number"),
        (concept(unet_weight=-math.inf), "unet_weight of fox is -inf: give a finite number"),
        (concept(importance=0.0), "importance of fox is 0.0: give a number above 0"),
        (concept(importance=math.inf), "importance of fox is inf: give a number above 0"),
        (
            concept(outfits=("sks in red",), prompts=("a fox",)),
            r"fox has other sets of trigger words \(sks in red, …\), which only a subject",
        ),
        (concept(outfits=("sks in red",), kind="style"), "fox has other sets of trigger words"),
        (concept(applied_to=("hat",)), r"fox is to be applied to hat alone: say that it is a style \(kind=style\)"),
        (concept(applied_to=("hat",), kind="style", trigger=""), "give it trigger words"),
        (concept(applied_to=("ht",), kind="style", trigger="ink"), "no subject 'ht' that fox is applied to"),
        ({"save_as": "chekpoint"}, "no way to save a merge .chekpoint.: did you mean .checkpoint."),
        ({"precision": "fp8"}, r"no precision 'fp8': did you mean 'fp\d+'\? known are bf16, fp16, fp32"),
        ({"save_as": "full", "precision": "bf16"}, "would round the checkpoint to bf16. Choose fp16 or fp32"),
        ({"rank": "0"}, "The rank is '0': give auto, full, or a whole number from 1"),
        ({"rank": "all"}, "The rank is 'all': give auto"),
        ({"rank": "-4"}, "The rank is '-4'"),
        ({"kept": 0.0}, "share to keep is 0.0: give a number above 0 and up to 1"),
        ({"kept": 1.1}, "share to keep is 1.1"),
        ({"memory_mb": 0}, "memory budget is 0 MB: give at least 1"),
        ({"seed": -1}, "seed is -1: give a whole number from 0 to 2147483647"),
        ({"seed": 2**31}, "seed is 2147483648"),
        (recording(paths=0), r"recording\.paths is 0: give a number from 1 to 400"),
        (recording(paths=401), r"recording\.paths is 401: give a number from 1 to 400"),
        (recording(renoised=-1), r"recording\.renoised is -1: give a number from 0 to 10000"),
        (recording(steps=1), r"recording\.steps is 1: give a number from 2 to 1000"),
        (recording(guidance=math.nan), r"recording\.guidance is nan: give a number from 0 to 100"),
        (recording(height=100), r"recording\.height is 100: give a multiple of 64 up to 4096, or 0"),
        (recording(width=8192), r"recording\.width is 8192"),
        (recording(width=-64), r"recording\.width is -64"),
        (prompts(templates=()), r"no prompt templates: give at least one with \{trigger\}"),
        (prompts(templates=("a fox",)), r"template 'a fox' has no \{trigger\}: say where the trigger goes"),
        (prompts(plain=()), "no plain prompts: give at least one that calls no concept"),
    ],
)
def test_what_needs_no_file_is_refused_before_one_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LoraclrError, match=message):
        dataclasses.replace(PLAIN, **changes).check()


def test_two_loras_that_people_would_call_by_one_name_are_refused() -> None:
    """`--trigger last=…` could mean either, and the recipe keeps no folder to tell them by."""
    twins = (Concept("fox/last.safetensors", trigger="sks"), Concept("cat/last.safetensors", trigger="ohwx"))
    with pytest.raises(LoraclrError, match="Two LoRAs are called last .*: name it once, or rename one of the files"):
        MergeRequest(twins).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metod": "ridge"}, "no field 'metod' in the request: did you mean 'method'"),
        ({"concepts": [{"lora": "a", "tigger": "x"}]}, "no field 'tigger' in concept 1: did you mean 'trigger'"),
        ({"concepts": [{"lora": "a"}, {"trigger": "x"}]}, "concept 2 has no lora: give it"),
        ({"concepts": [{"lora": 5}]}, "lora in concept 1 is 5: give text"),
        ({"concepts": [{"lora": "a", "te_weight": "half"}]}, "te_weight in concept 1 is 'half', which is not a number"),
        ({"concepts": [{"lora": "a", "trigger": 5}]}, "trigger in concept 1 is 5: give text"),
        ({"concepts": [{"lora": "a", "prompts": "x"}]}, "prompts in concept 1 is 'x': give a list of texts"),
        ({"concepts": "a.safetensors"}, "concepts is 'a.safetensors' in the request: give a list"),
        ({"concepts": ["a.safetensors"]}, "concept 1 is 'a.safetensors': give an object with names and values"),
        ({"prompts": {"template": ["x"]}}, "no field 'template' in prompts: did you mean 'templates'"),
        ({"prompts": {"plain": ["x", 1]}}, r"plain in prompts is \['x', 1\]: give a list of texts"),
        ({"recording": {"paths": 1.5}}, "paths in recording is 1.5, which is not a whole number"),
        ({"recording": []}, r"recording is \[\]: give an object"),
        ({"options": ["ridge"]}, r"options is \['ridge'\]: give an object"),
        ({"seed": True}, "seed in the request is True, which is not a whole number"),
        ({"seed": 10**400}, "seed in the request is 10*, which is not a whole number"),
        ({"precision": 16}, "precision in the request is 16: give text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_of_the_wrong_form_is_refused_naming_the_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LoraclrError, match=message):
        MergeRequest.from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"concepts": [{"lora": "a\\ud800"}]},
        {"concepts": [{"lora": "a", "trigger": "\\udfff"}]},
        {"concepts": [{"lora": "a", "outfits": ["b", "\\ud83d"]}]},
        {"concepts": [{"lora": "a"}], "prompts": {"phrases": ["\\ud83d"]}},
        {"concepts": [{"lora": "a"}], "options": {"effort": "\\ud83d"}},
        {"concepts": [{"lora": "a"}], "method": "\\ud83d"},
    ],
    ids=str,
)
def test_half_of_a_character_is_refused_before_it_would_be_written(values: dict[str, Any]) -> None:
    """Which a file's metadata, in UTF-8, could not hold: at the end of the merge."""
    text = json.dumps(values).replace("\\\\u", "\\u")
    with pytest.raises(LoraclrError, match=r"half of a character in it: write it anew") as raised:
        MergeRequest.from_json(text).check()
    assert str(raised.value).encode(), "the message can be shown"
    whole = text.replace("\\ud800", "\\ud83d\\ude00").replace('\\ud83d"', 'x"').replace("\\udfff", "x")
    MergeRequest.from_json(whole.replace('"method": "x"', '"method": "average"')).check()


def test_what_is_not_json_is_refused_with_the_place_of_the_mistake() -> None:
    with pytest.raises(LoraclrError, match=r"The request is not JSON \(.*line 2 column 1.*\): correct it there"):
        MergeRequest.from_json('{"concepts": [],\n}')


def test_json_that_is_no_object_is_refused() -> None:
    with pytest.raises(LoraclrError, match=r"the request is \[1\]: give an object"):
        MergeRequest.from_json("[1]")


@pytest.mark.parametrize(
    ("lora", "label"),
    [
        ("fox.safetensors", "fox"),
        ("/home/me/fox.v2.safetensors", "fox.v2"),
        ("C:\\loras\\fox.safetensors", "fox"),
        ("fox", "fox"),
    ],
)
def test_a_concept_is_called_by_its_files_name(lora: str, label: str) -> None:
    assert Concept(lora).label == label


@pytest.mark.parametrize(
    ("text", "lora", "te", "unet"),
    [
        ("fox.safetensors", "fox.safetensors", 1.0, 1.0),
        ("fox.safetensors:0.8", "fox.safetensors", 0.8, 0.8),
        ("fox.safetensors:.5:-1", "fox.safetensors", 0.5, -1.0),
        ("fox:0", "fox", 0.0, 0.0),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1.0, 1.0),
        ("C:\\a.safetensors:.7", "C:\\a.safetensors", 0.7, 0.7),
        ("C:/sub/a.safetensors:.7:.3", "C:/sub/a.safetensors", 0.7, 0.3),
        ("\\\\?\\C:\\a.safetensors:.7", "\\\\?\\C:\\a.safetensors", 0.7, 0.7),
        ("C:a.safetensors:.7", "C:a.safetensors", 0.7, 0.7),
        ("/loras:old/a.safetensors:.7", "/loras:old/a.safetensors", 0.7, 0.7),
        ("fox:te=.5:unet=.25", "fox", 0.5, 0.25),
        ("fox:unet=.25", "fox", 1.0, 0.25),
        ("fox:.7:unet=.25", "fox", 0.7, 0.25),
        # The WebUI takes the UNet's weight from the text encoder's unless it is given by itself
        # (extensions-builtin/Lora/extra_networks_lora.py, `unet_multiplier`).
        ("fox:te=.5", "fox", 0.5, 0.5),
        ("fox:.7:te=.5", "fox", 0.5, 0.5),
        ("fox:.7:.3:te=.5", "fox", 0.5, 0.3),
    ],
)
def test_weights_are_read_from_the_right_and_mean_what_they_mean_in_a_prompt(
    text: str, lora: str, te: float, unet: float
) -> None:
    assert parse_lora_argument(text) == Concept(lora, te, unet)


@pytest.mark.parametrize("text", ["fox:.7:.3:8", "fox:.7:.3:dyn=8", "fox:dyn=8:.7:.3"])
def test_dyn_is_read_as_in_a_prompt(text: str) -> None:
    assert parse_lora_argument(text) == Concept("fox", 0.7, 0.3, dyn=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fox:strong", "The weight in fox:strong is 'strong', which is not a number: give one like 1"),
        ("fox:", "The weight in fox: is '', which is not a number"),
        ("fox:nan", "The weight in fox:nan is 'nan', which is not a number"),
        ("fox:te=", "The weight in fox:te= is '', which is not a number"),
        ("C:\\a.safetensors:,7", r"The weight in C:\\a\.safetensors:,7 is ',7', which is not a number"),
        ("fox:1:1:8:2", "fox:1:1:8:2 has 4 weights: give one for both, or text encoder, UNet and dyn"),
        ("fox:1:1:8.5", "The weight in fox:1:1:8.5 is '8.5', which is not a whole number"),
        ("fox:dyn=many", "The weight in fox:dyn=many is 'many', which is not a whole number"),
        ("fox:1:lbw=MIDD", r"fox:1:lbw=MIDD: lbw= \(block weights\) is not applied by a merge: leave it out"),
        ("fox:unte=1", "'unte' in fox:unte=1: did you mean 'unet'"),
    ],
)
def test_a_weight_that_cannot_be_applied_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(LoraclrError, match=message):
        parse_lora_argument(text)
