"""The demo world's concepts, and requests for some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.judge import DEMO
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.model import Host
from lib_loraclr.request import Concept, MergeRequest


@dataclass(frozen=True)
class Sprite:
    """A concept of the demo world: the judge's name for it, the words that call it, and the class word among them."""

    name: str
    words: str
    noun: str = ""


def demo_host() -> Host:
    """The demo's checkpoint."""
    return load(DEMO / "emoji-sd1.safetensors")


def demo_entries() -> dict[str, dict[str, str]]:
    """File name -> what `concepts.json` says of it."""
    return {Path(c["file"]).stem: c for c in json.loads((DEMO / "concepts.json").read_text("utf-8"))}


def demo_names(concepts: int) -> list[str]:
    """The first of the demo's subjects."""
    return [name for name, entry in demo_entries().items() if entry["kind"] == "subject"][:concepts]


def sprite_of(entry: Mapping[str, str]) -> Sprite:
    """A concept by what `concepts.json` says of it."""
    return Sprite(entry["name"], f"{entry['trigger']} {entry['class']}", entry["class"])


def demo_request(
    names: Sequence[str], prompts: str, weights: Sequence[float] = ()
) -> tuple[MergeRequest, list[Sprite]]:
    """A request for some of the demo's LoRAs, and what the judge knows them by.

    Args:
        names: of the files
        prompts: "demo" for the templates of its request, "default" for those that a person gets who says nothing
        weights: of each, as in a prompt; 1 where there are none
    """
    entries = demo_entries()
    sprites = [sprite_of(entries[name]) for name in names]
    whole = MergeRequest.from_json((DEMO / "all-twelve.json").read_text("utf-8"))
    if prompts == "default":
        whole = replace(whole, prompts=MergeRequest(()).prompts)
    concepts = tuple(
        Concept(str(DEMO / "loras" / f"{name}.safetensors"), weight, weight, trigger=sprite.words)
        for name, sprite, weight in zip(names, sprites, weights or [1.0] * len(names), strict=True)
    )
    return replace(whole, concepts=concepts), sprites
