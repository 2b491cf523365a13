"""Trigger words that LoRA files name: in their card, or in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def trigger_from_metadata(metadata: Mapping[str, str]) -> str:
    """Trigger words a file names: `modelspec.trigger_phrase`, else the most frequent tag of `ss_tag_frequency`, else ""."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return phrase
    counts: dict[str, int] = {}
    for tags in tag_frequency(metadata).values():
        for tag, count in tags.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return max(counts, key=lambda tag: (counts[tag], tag)) if counts else ""


def tag_frequency(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency` as folder -> tag -> count; empty where it is missing or not of that form."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "") or "{}")
        return {str(folder): {str(tag): int(count) for tag, count in tags.items()} for folder, tags in folders.items()}
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}


def find_trigger(path: Path, metadata: Mapping[str, str]) -> str:
    """Trigger words of a LoRA file: the WebUI card's activation text, else the metadata's, else none."""
    card = path.with_suffix(".json")
    if card.is_file():
        try:
            text = json.loads(card.read_text("utf-8")).get("activation text", "")
            if isinstance(text, str) and text.strip():
                return text.strip()
        except (ValueError, OSError, AttributeError):
            pass  # a damaged card is the WebUI's business; the metadata may still know
    return trigger_from_metadata(metadata)
