"""Arguments that become a `MergeRequest`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import LoraclrError, unknown_name
from ...files import require_safetensors
from ...request import (
    BANKS,
    KINDS,
    NO_BANK,
    PRECISIONS,
    SAVE_AS,
    TEMPLATES,
    Concept,
    MergeRequest,
    Option,
    PromptOptions,
    RecordingOptions,
    parse_lora_argument,
    parse_number,
    schema,
)
from ...solving import METHODS, find_method
from .methods import describe
from .sources import request_named

LORA_HELP = "a LoRA, with weights as in a prompt: file.safetensors, file.safetensors:0.8, file.safetensors:te:unet"


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """The LoRAs and what is said of each."""
    parser.add_argument("loras", nargs="*", metavar="LORA", help=LORA_HELP)
    group = parser.add_argument_group("concepts", "NAME is the LoRA's file name without extension")
    group.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="NAME=WORDS",
        help="its trigger words (default: from its card or metadata); NAME= for a style that needs none",
    )
    group.add_argument(
        "--kind", action="append", default=[], metavar="NAME=KIND", help=f"{' or '.join(KINDS)} (default: subject)"
    )
    group.add_argument(
        "--concept-prompt",
        action="append",
        default=[],
        metavar="NAME=PROMPT",
        help="record it on this prompt instead of the templates; may be repeated",
    )


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked of the model while it is recorded."""
    group = parser.add_argument_group("prompts and recording")
    group.add_argument(
        "--prompts", default=None, choices=sorted(TEMPLATES), help="the way the checkpoint is prompted (default: photo)"
    )
    group.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt to record, with {trigger}, in place of the preset's; may be repeated",
    )
    group.add_argument(
        "--plain",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt that calls no concept, in place of the preset's; may be repeated",
    )
    group.add_argument(
        "--bank",
        default=None,
        choices=(*BANKS, NO_BANK),
        help="bank of phrases that prompts are drawn from besides (default: that of --prompts)",
    )
    group.add_argument(
        "--phrase",
        action="append",
        default=[],
        metavar="WORDS",
        help="words you use in prompts, added to the bank; may be repeated",
    )
    group.add_argument("--quality", default=None, metavar="WORDS", help="words added to every prompt")
    group.add_argument("--negative-prompt", default=None, metavar="TEXT", help="the negative prompt")
    for name, kind, text in (
        ("guidance", float, "classifier-free guidance on these paths (default: 5)"),
        ("height", int, "of the recorded pictures in pixels (default: the checkpoint's own)"),
        ("width", int, "likewise"),
        ("clip-skip", int, "as in the WebUI, 1 to 12 (default: what the LoRAs were trained with, where they say so)"),
    ):
        group.add_argument(f"--{name}", type=kind, default=None, help=text)
    group.add_argument(
        "--memory",
        type=int,
        default=None,
        metavar="MB",
        help="for recordings and teachers' predictions together (default: 1024)",
    )
    group.add_argument(
        "--seed", type=int, default=None, help="of everything that is drawn; -1 for another each time (default: 0)"
    )


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    """What only a merge asks for: retention is measured on paths of its own."""
    group = parser.add_argument_group("recording")
    group.add_argument("--show-prompts", action="store_true", help="print the prompts that would be recorded, and stop")
    recording = RecordingOptions()
    for flag, text, default in (
        ("--paths", "denoising paths per concept", recording.paths),
        ("--steps-per-path", "steps of each path", recording.steps),
        ("--renoised", "points per concept besides, on its finished pictures with fresh noise", recording.renoised),
    ):
        group.add_argument(flag, type=int, default=None, help=f"{text} (default: {default})")
    for flag, metavar, text in (
        ("--outfit", "NAME=WORDS", "other trigger words that call a subject too, taught as much as the first"),
        ("--applied-to", "STYLE=NAME", "a subject that a style with trigger words is taught on, in place of all"),
    ):
        group.add_argument(flag, action="append", default=[], metavar=metavar, help=f"{text}; may be repeated")
    group.add_argument(
        "--alone",
        action="append",
        default=[],
        metavar="NAME",
        help="a concept that is never taught beside another in one picture; may be repeated",
    )
    group.add_argument(
        "--importance",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="how much a concept's errors count (default: 1)",
    )


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The method and its options; the flags come from the methods' own option classes."""
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        default=None,
        metavar="NAME",
        help=f"{', '.join(METHODS)} (default: contrastive); `methods` lists what others do instead too",
    )
    for name, (owners, item) in _all_options().items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(
            flag, dest=f"option_{name}", default=None, metavar="VALUE", help=f"({', '.join(owners)}) {describe(item)}"
        )
    group.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="any option of the method by name"
    )
    group.add_argument("--rank", default=None, help="auto, full, or a number (default: auto)")
    group.add_argument(
        "--kept",
        default=None,
        metavar="SHARE",
        help="share of the effect that the automatic rank keeps (default: 0.999)",
    )
    group.add_argument(
        "--save-as",
        default=None,
        choices=SAVE_AS,
        help="; ".join(f"{name}: {text}" for name, text in SAVE_AS.items()) + " (default: lora)",
    )
    group.add_argument("--precision", default=None, help=f"of the file: {', '.join(PRECISIONS)} (default: fp16)")


def _all_options() -> dict[str, tuple[list[str], Option]]:
    found: dict[str, tuple[list[str], Option]] = {}
    for method in METHODS.values():
        for item in schema(method.options):
            found.setdefault(item.name, ([], item))[0].append(method.name)
    return found


def build_request(arguments: argparse.Namespace, base: MergeRequest | None = None) -> MergeRequest:
    """The request that the arguments describe; a request that was read first, then what is said beside it.

    Args:
        base: what was read; None: what `--request`, `--recipe-from` or `--add-to` name

    Raises:
        LoraclrError: anything in it that a person can mend
    """
    request = base or request_named(arguments)
    named = tuple(parse_lora_argument(text) for text in arguments.loras)
    if named:
        kept = request.concepts if getattr(arguments, "add_to", None) else ()
        request = dataclasses.replace(request, concepts=(*kept, *named))
    if not request.concepts:
        request.check()  # says that there is nothing to merge, before a flag is about a LoRA that is not there
    request = dataclasses.replace(request, concepts=tuple(_described(request.concepts, arguments)))
    own = {name: getattr(arguments, name, None) for name in ("method", "rank", "save_as", "precision", "seed")}
    own["memory_mb"] = arguments.memory
    changes: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    if getattr(arguments, "kept", None) is not None:
        changes["kept"] = parse_number(arguments.kept, f"--kept is {arguments.kept!r}")
    changes["prompts"] = _prompts(request.prompts, arguments)
    changes["recording"] = dataclasses.replace(request.recording, **_recording(arguments))
    changes["options"] = {**request.options, **_options(arguments)}
    request = dataclasses.replace(request, **changes).seeded()
    request.check()
    find_method(request.method)
    return request


def require_files(loras: Iterable[str]) -> None:
    """Refuse LoRAs that are not there, before the checkpoint is loaded, which takes a minute.

    Raises:
        LoraclrError: no such file, or one that cannot be a LoRA
    """
    for lora in loras:
        require_safetensors(Path(lora))


def _pairs(texts: Sequence[str], flag: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        if "=" not in text:
            raise LoraclrError(f"{flag} {text!r} has no '=': write {flag} NAME=VALUE.")
        # a file's name may have a "=" of its own: the longest that is one of them
        named = [label for label in labels if text.startswith(f"{label}=")]
        if not named:
            raise unknown_name("LoRA called", text.partition("=")[0], labels)
        name = max(named, key=len)
        pairs.append((name, text[len(name) + 1 :]))
    return pairs


def _described(concepts: Sequence[Concept], arguments: argparse.Namespace) -> list[Concept]:
    labels = [concept.label for concept in concepts]
    changes: dict[str, dict[str, Any]] = {label: {} for label in labels}
    for name, value in _pairs(arguments.trigger, "--trigger", labels):
        changes[name]["trigger"] = value
    for name, value in _pairs(arguments.kind, "--kind", labels):
        changes[name]["kind"] = value
    for name, value in _pairs(getattr(arguments, "importance", []), "--importance", labels):
        changes[name]["importance"] = float(parse_number(value, f"The importance of {name} is {value!r}"))
    for name, value in _pairs(arguments.concept_prompt, "--concept-prompt", labels):
        changes[name]["prompts"] = (*changes[name].get("prompts", ()), value)
    for flag, field in (("outfit", "outfits"), ("applied_to", "applied_to")):
        for name, value in _pairs(getattr(arguments, flag, []), f"--{flag.replace('_', '-')}", labels):
            changes[name][field] = (*changes[name].get(field, ()), value)
    for name in getattr(arguments, "alone", []):
        if name not in changes:
            raise unknown_name("LoRA called", name, labels)
        changes[name]["alone"] = True
    return [dataclasses.replace(concept, **changes[concept.label]) for concept in concepts]


def _prompts(prompts: PromptOptions, arguments: argparse.Namespace) -> PromptOptions:
    if arguments.prompts:
        preset = PromptOptions.preset(arguments.prompts)
        prompts = dataclasses.replace(prompts, templates=preset.templates, plain=preset.plain)
    given = {
        "templates": tuple(arguments.template) or None,
        "plain": tuple(arguments.plain) or None,
        "quality": arguments.quality,
        "negative": arguments.negative_prompt,
        "bank": arguments.bank,
        "phrases": tuple(arguments.phrase) or None,
    }
    return dataclasses.replace(prompts, **{name: value for name, value in given.items() if value is not None})


def _recording(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {field.name: field.name for field in dataclasses.fields(RecordingOptions)} | {"steps": "steps_per_path"}
    given = {field: getattr(arguments, name, None) for field, name in names.items()}
    return {field: value for field, value in given.items() if value is not None}


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in _all_options():
        value = getattr(arguments, f"option_{name}", None)
        if value is not None:
            options[name] = value
    for text in getattr(arguments, "option", []):
        name, equals, value = text.partition("=")
        if not equals:
            raise LoraclrError(f"--option {text!r} has no '=': write --option NAME=VALUE.")
        options[name] = value
    return options
