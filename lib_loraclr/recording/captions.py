"""The words of the captions that LoRAs were trained with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..files import tag_frequency
from .inputs import InputLora

#: words of captions that are used: the most frequent ones
_CAPTION_WORDS = 40


def caption_words(inputs: Sequence[InputLora]) -> tuple[str, ...]:
    """What the LoRAs' training captions say most often, apart from their trigger words: the words they know."""
    counts: Counter[str] = Counter()
    triggers = {part.strip().lower() for lora in inputs for part in (lora.concept.trigger or "").split(",")}
    for lora in inputs:
        for tags in tag_frequency(lora.file.metadata).values():
            counts.update({tag: 1 for tag in tags if tag.lower() not in triggers})
    return tuple(tag for tag, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_CAPTION_WORDS])
