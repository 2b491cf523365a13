"""The merge request as the WebUI's /docs describe it: every field with its type, its range, its default and an example."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from ...request import (
    BANKS,
    KINDS,
    LARGEST_SEED,
    NO_BANK,
    PRECISIONS,
    RECORDING_RANGES,
    SAVE_AS,
    Concept,
    MergeRequest,
    Option,
    PromptOptions,
    RecordingOptions,
    schema,
)
from ...solving import METHODS

EXAMPLE = {
    "concepts": [
        {"lora": "fox-face", "trigger": "sks animal"},
        {"lora": "penguin", "te_weight": 0.8, "unet_weight": 0.8, "trigger": "ohwx bird"},
    ],
    "method": "contrastive",
    "options": {"effort": "fast"},
}
#: fields that take one of some words -> these
_CHOICES = {
    "kind": KINDS,
    "save_as": tuple(SAVE_AS),
    "precision": PRECISIONS,
    "method": tuple(METHODS),
    "bank": ("", *BANKS, NO_BANK),
}
#: fields whose defaults say too little -> an example
_EXAMPLES = {"lora": "fox-face", "trigger": "sks animal", "rank": "32", "quality": "masterpiece, best quality"}
#: figures -> least and most; None for any
_RANGES = {
    **RECORDING_RANGES,
    "kept": (0, 1),
    "seed": (-1, LARGEST_SEED),
    "memory_mb": (1, None),
    "importance": (0, None),
    "dyn": (0, None),
    "height": (0, 4096),
    "width": (0, 4096),
}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array"}


def request_schema() -> dict[str, Any]:
    """JSON schema of a merge request, from the dataclasses that check it."""
    whole = _of_dataclass(MergeRequest)
    fields = whole["properties"]
    fields["concepts"] |= {"type": "array", "items": _of_dataclass(Concept), "minItems": 1}
    fields["options"] |= {
        "type": "object",
        "anyOf": [_of_method(name) for name in METHODS],
        "example": EXAMPLE["options"],
    }
    fields["prompts"] |= _of_dataclass(PromptOptions)
    fields["recording"] |= _of_dataclass(RecordingOptions)
    return {**whole, "required": ["concepts"], "example": EXAMPLE}


def _of_dataclass(cls: type) -> dict[str, Any]:
    told = _attributes(cls)
    fields = dataclasses.fields(cls)
    required = [item.name for item in fields if item.default is item.default_factory is dataclasses.MISSING]
    made = {"type": "object", "properties": {item.name: _of_field(item, told.get(item.name, "")) for item in fields}}
    return {**made, "required": required} if required else made


def _of_field(item: dataclasses.Field, description: str) -> dict[str, Any]:
    made: dict[str, Any] = {"description": description}
    default = item.default
    if default is not dataclasses.MISSING:
        made["default"] = list(default) if isinstance(default, tuple) else default
    kind = type(default) if type(default) in _TYPES else str
    if default is not dataclasses.MISSING or item.name == "lora":
        made["type"] = _TYPES[kind]
    if kind is tuple:
        made["items"] = {"type": "string"}
    ends = zip(("minimum", "maximum"), _RANGES.get(item.name, ()), strict=False)
    made |= {name: end for name, end in ends if end is not None}
    if item.name in _CHOICES:
        made["enum"] = list(_CHOICES[item.name])
    example = _EXAMPLES.get(item.name, made.get("default"))
    if example not in (None, "", []):
        made["example"] = example
    return made


def _of_method(name: str) -> dict[str, Any]:
    """The options of a method."""
    return {
        "title": name,
        "type": "object",
        "description": METHODS[name].summary,
        "properties": {item.name: _of_option(item) for item in schema(METHODS[name].options)},
        "additionalProperties": False,
    }


def _of_option(item: Option) -> dict[str, Any]:
    made: dict[str, Any] = {"type": _TYPES[item.type], "description": item.help, "default": item.default}
    if item.minimum is not None:
        made["minimum"] = item.minimum
    if item.maximum is not None:
        made["maximum"] = item.maximum
    if item.choices:
        made["enum"] = list(item.choices)
    return {**made, "example": item.default}


def _attributes(cls: type) -> dict[str, str]:
    """What a class's docstring says of each of its attributes."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    told: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + text):
        names, _, words = " ".join(entry.split()).partition(": ")
        for name in names.split(", "):
            told[name] = words
    return told
