"""What will be asked: the bank of phrases with what a person and the LoRAs' own captions add to it, and examples of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..files import tag_frequency
from ..request import NO_BANK, MergeRequest, Part, Phrases, contains_words, escaped
from .inputs import InputLora
from .teachers import Slot, Teacher, make_teachers

#: words of captions that are used: the most frequent ones
_CAPTION_WORDS = 40


def caption_words(inputs: Sequence[InputLora]) -> tuple[str, ...]:
    """What the LoRAs' training captions say most often, apart from their trigger words: the words they know."""
    shares: Counter[str] = Counter()
    triggers = {part.strip().lower() for lora in inputs for part in (lora.concept.trigger or "").split(",")}
    for lora in inputs:
        counts: Counter[str] = Counter()
        for tags in tag_frequency(lora.file.metadata).values():
            counts.update({tag: count for tag, count in tags.items() if tag.lower() not in triggers})
        most = max(counts.values(), default=0)
        # in proportion, so that a LoRA of many pictures does not speak for all
        shares.update({tag: count / most for tag, count in counts.items() if most})
    frequent = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return tuple(escaped(tag) for tag, _ in frequent[:_CAPTION_WORDS])


def phrases_of(request: MergeRequest, inputs: Sequence[InputLora], part: Part) -> Phrases:
    """The phrases of one part of the bank for a merge; none of them calls a concept by accident."""
    prompts = request.prompts
    triggers = [words for lora in inputs for words in (lora.concept.trigger, *lora.concept.outfits) if words]
    added = (*prompts.phrases, *(caption_words(inputs) if prompts.bank_name != NO_BANK else ()))
    return Phrases(
        prompts.bank_name,
        part,
        templates=prompts.templates,
        added=[phrase for phrase in added if not any(contains_words(phrase, words) for words in triggers)],
        avoid=triggers,
        seed=request.seed,
    )


def example_prompts(
    request: MergeRequest, inputs: Sequence[InputLora], count: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Some of what will be asked while a merge is recorded.

    Args:
        count: how many of each

    Returns:
        teacher's name -> prompts, and prompts for two concepts in one picture
    """
    teachers = make_teachers([lora.concept for lora in inputs], request.prompts)
    phrases = phrases_of(request, inputs, Part.LEARN)
    slots = [Slot(k, Part.LEARN, phrases.draw(), {}) for k in range(count)]
    asked = {teacher.name: [teacher.prompt(slot) for slot in slots] for teacher in teachers}
    beside = [teacher for teacher in teachers if teacher.in_scenes]
    return asked, _beside(beside, slots) if len(beside) > 1 else []


def _beside(teachers: Sequence[Teacher], slots: Sequence[Slot]) -> list[str]:
    number = len(teachers)
    return [
        teachers[slot.number % number].prompt_beside([teachers[(slot.number + 1) % number]], slot) for slot in slots
    ]
