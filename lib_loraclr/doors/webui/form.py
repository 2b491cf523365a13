"""The tab's fields as a `MergeRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import LoraclrError
from ...hosts.running import find_lora
from ...request import (
    Concept,
    MergeRequest,
    PromptOptions,
    RecordingOptions,
    drawn_seed,
    parse_number,
    schema,
)
from ...solving import EFFORT, METHODS, Procedure, find_method
from .catalogue import require_fitting
from .labels import BANKS, code_of
from .rows import Table

#: fields of the tab that are fields of the request or of a part of it
RECORDING = ("paths", "steps", "renoised", "guidance", "height", "width")


def option_field(method: str, option: str) -> str:
    """What a method's option is called among the tab's fields."""
    return f"option.{method}.{option}"


def build(table: Table, fields: Mapping[str, Any]) -> tuple[MergeRequest, tuple[str, ...]]:
    """The request, with paths, and the LoRAs' names.

    Raises:
        LoraclrError: anything in it that a person can mend
    """
    concepts, refused = sort_out(table)
    for reason in refused.values():
        raise LoraclrError(reason)
    return complete(concepts, fields), tuple(concepts)


def sort_out(table: Table) -> tuple[dict[str, Concept], dict[str, str]]:
    """LoRA -> concept, of the rows that can be merged as they are, and LoRA -> reason, of those that cannot.

    Raises:
        LoraclrError: there are no rows
    """
    if not table.rows:
        raise LoraclrError("There is nothing to merge: choose two or more LoRAs at the top.")
    concepts, refused = {}, {}
    for row in table.rows:
        try:
            lora = find_lora(row.lora)
            require_fitting(lora)
            concepts[row.lora] = row.concept(lora)
        except LoraclrError as error:
            refused[row.lora] = str(error)
    return concepts, refused


def complete(concepts: Mapping[str, Concept], fields: Mapping[str, Any]) -> MergeRequest:
    """The request for these concepts.

    Raises:
        LoraclrError: anything in it that a person can mend
    """
    request = replace(settings(fields), concepts=tuple(concepts.values()))
    request.check()
    Procedure.of(request)
    return request


def settings(fields: Mapping[str, Any]) -> MergeRequest:
    """The request without concepts.

    Raises:
        LoraclrError: a field that is empty or of the wrong type
    """
    method = fields["method"]
    options = {}
    for item in schema(find_method(method).options):
        name = EFFORT if item.name == EFFORT else option_field(method, item.name)
        value = str(fields[name]).lower() if item.name == EFFORT else fields[name]
        options[item.name] = _value(value, item.type, item.name)
    recording = {name: _value(fields[name], type(getattr(RecordingOptions(), name)), name) for name in RECORDING}
    prompts = PromptOptions(
        templates=_lines(fields["templates"]),
        plain=_lines(fields["plain"]),
        quality=fields["quality"].strip(),
        negative=fields["negative"].strip(),
        pair=fields["pair"].strip() or PromptOptions().pair,
        bank=code_of(fields["bank"], BANKS),
        phrases=_lines(fields["phrases"]),
    )
    return MergeRequest(
        (),
        method=method,
        options=options,
        rank=str(fields["rank"]).strip().lower(),
        kept=_value(fields["kept"], float, "kept"),
        save_as=fields["save_as"],
        precision=fields["precision"],
        seed=drawn_seed(_value(fields["seed"], int, "seed")),
        memory_mb=_value(fields["memory_mb"], int, "memory"),
        prompts=prompts,
        recording=RecordingOptions(**recording),
    )


def fields_of(request: MergeRequest) -> dict[str, Any]:
    """What stands in the tab's fields for a request: the inverse of `settings`. Options of other methods are not among them."""
    if request.method not in METHODS:  # a baseline, which `not_in_the_tab` tells of
        request = replace(request, method=MergeRequest.method, options={})
    found: dict[str, Any] = {
        name: getattr(request, name) for name in ("method", "rank", "kept", "save_as", "precision")
    }
    found |= {"seed": request.seed, "memory_mb": request.memory_mb}
    for item in schema(find_method(request.method).options):
        value = request.options.get(item.name, item.default)
        found[EFFORT if item.name == EFFORT else option_field(request.method, item.name)] = (
            str(value).capitalize() if item.name == EFFORT else value
        )
    found |= {name: getattr(request.recording, name) for name in RECORDING}
    prompts = request.prompts
    found |= {name: "\n".join(getattr(prompts, name)) for name in ("templates", "plain", "phrases")}
    found |= {name: getattr(prompts, name) for name in ("quality", "negative", "pair")}
    return {**found, "bank": next(label for label, bank in BANKS.items() if bank == prompts.bank)}


def not_in_the_tab(request: MergeRequest) -> list[str]:
    """What a request asks for that the tab has no field for."""
    told = [f"dyn={concept.dyn} of {concept.label}" for concept in request.concepts if concept.dyn]
    told += [f"clip skip {request.recording.clip_skip}"] if request.recording.clip_skip else []
    return [*told, f"the method {request.method}"] if request.method not in METHODS else told


def _value(value: Any, kind: type, name: str) -> Any:
    if kind in (int, float):
        if value is None:
            raise LoraclrError(f"{name.replace('_', ' ')} is empty: give a number.")
        return parse_number(value, f"{name.replace('_', ' ')} is {value!r}", whole=kind is int)
    return value


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def methods() -> list[str]:
    return list(METHODS)
