"""`loraclr inspect`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ...files import (
    LoraFile,
    Trigger,
    clip_skip,
    family_of,
    few_steps,
    few_steps_warning,
    find_trigger,
    is_text_encoder,
    kind_name,
    kind_of,
    read_lora,
    unused_parameters,
)

HELP = "show what a LoRA file is"
DESCRIPTION = "Show what LoRA files are: family, kind of network, ranks, layers, size, triggers, base, licence, hash."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .safetensors file")


def run(arguments: argparse.Namespace) -> None:
    for number, name in enumerate(arguments.files):
        if number:
            print()
        facts = describe(read_lora(Path(name)))
        width = max(map(len, facts))
        print(name)
        print("\n".join(f"  {label.ljust(width)}  {text}" for label, text in facts.items()))


def describe(file: LoraFile) -> dict[str, str]:
    """What there is to say of a file, label -> text."""
    kinds, ranks, alphas, unused = Counter(), Counter(), Counter(), list(file.unknown)
    for key, parameters in file.layers.items():
        kinds[kind_name(parameters)] += 1
        kind = kind_of(parameters)
        if kind is None:
            unused += [file.own_key(key, name) for name in parameters]
            continue
        unused += [file.own_key(key, name) for name in unused_parameters(kind, parameters)]
        if (rank := kind.rank(parameters)) is not None:
            ranks[rank] += 1
            alphas[float(parameters["alpha"]) if "alpha" in parameters else float(rank)] += 1
    text_encoder = sum(map(is_text_encoder, file.layers))
    meta = file.metadata
    facts = {
        "family": family_of(file) or "unknown",
        "kind": _counted(kinds, len(file.layers)),
        "rank": _counted(ranks, len(file.layers)) or "n/a",
        "alpha": _counted(alphas, len(file.layers)) or "n/a",
        "layers": f"{len(file.layers)} ({text_encoder} text encoder, {len(file.layers) - text_encoder} UNet)",
        "size": f"{file.path.stat().st_size / 2**20:.1f} MB",
        "trigger": _trigger(find_trigger(file.path, meta)),
        "base": meta.get("ss_sd_model_name", "not named"),
        "licence": meta.get("modelspec.license", "not named"),
        "hash": file.hash,
    }
    if file.embeddings:
        facts["embeddings"] = ", ".join(sorted({key.split(".")[1] for key in file.embeddings}))
    kind = few_steps(file.name, meta)
    if kind:
        facts["advice"] = few_steps_warning(file.name, kind)
    if clip_skip(meta):
        facts["clip skip"] = str(clip_skip(meta))
    if unused:
        facts["not understood"] = f"{len(unused)} keys: {', '.join(unused)}"
    if "loraclr.request" in meta:
        facts["merged from"] = meta.get("modelspec.merged_from", "")
    return facts


def _trigger(found: Trigger) -> str:
    if not found.is_guess:
        return found.words
    return (
        f"none named; a guess: {found.words} ({'a tag of its captions' if found.source == 'tags' else 'its file name'})"
    )


def _counted(counts: Counter, total: int) -> str:
    if len(counts) == 1 and sum(counts.values()) == total:
        return str(next(iter(counts)))
    return ", ".join(f"{value} ({count} layers)" for value, count in sorted(counts.items(), key=str))
