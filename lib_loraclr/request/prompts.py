"""The prompts that a merge records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import LoraclrError, unknown_name
from .phrases import BANKS, contains_words

#: asks nothing but the templates
NO_BANK = "none"

#: templates by the way a checkpoint is prompted; `{trigger}` stands for a concept's trigger words
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": (
        "a photo of {trigger}",
        "{trigger}",
        "a close-up photo of {trigger}",
        "{trigger}, outdoors",
        "a photo of {trigger} on a white background",
        "a painting of {trigger}",
        "{trigger} in the street at night",
        "a bright photo of {trigger}",
    ),
    "booru": (
        "{trigger}, solo",
        "{trigger}",
        "{trigger}, solo, upper body, looking at viewer",
        "{trigger}, solo, simple background",
        "{trigger}, outdoors, day",
        "{trigger}, full body, standing",
        "{trigger}, indoors, night",
        "{trigger}, close-up",
    ),
}

#: prompts that call no concept, for the rows that keep the merge from leaking into everything
PLAIN: dict[str, tuple[str, ...]] = {
    "photo": (
        "a photo of a cat",
        "a red car on a road",
        "a portrait of a woman",
        "a bowl of fruit on a table",
        "a house in the mountains",
        "a man in a suit",
        "a city at night",
        "a green bird on a branch",
    ),
    "booru": (
        "1girl, solo, looking at viewer",
        "1boy, solo, upper body",
        "no humans, scenery, mountain",
        "cat, animal focus, simple background",
        "1girl, school uniform, classroom",
        "still life, food, table",
        "city, night, building",
        "car, road, outdoors",
    ),
}


@dataclass(frozen=True)
class PromptOptions:
    """What is asked of the model while it is recorded.

    Attributes:
        templates: with `{trigger}`; every concept is asked each of them in turn
        plain: prompts that call no concept
        quality: words added to the end of every prompt ("masterpiece, best quality")
        negative: the negative prompt, which guidance uses at every step
        pair: asks for two concepts at once, `{first}` and `{second}`; for pictures only
        bank: which bank of phrases prompts are drawn from besides (`phrases.BANKS`), or "none"; empty: that of the templates
        phrases: phrases that are added to the bank ("in a red dress"), or asked with `{trigger}` as templates are
    """

    templates: tuple[str, ...] = TEMPLATES["photo"]
    plain: tuple[str, ...] = PLAIN["photo"]
    quality: str = ""
    negative: str = ""
    pair: str = "{first} and {second}"
    bank: str = ""
    phrases: tuple[str, ...] = ()

    @property
    def bank_name(self) -> str:
        """The bank that is drawn from, or "none"."""
        return self.bank or next((name for name, own in TEMPLATES.items() if own == self.templates), "photo")

    @classmethod
    def preset(cls, name: str) -> PromptOptions:
        """The options for "photo" or "booru" prompts.

        Raises:
            LoraclrError: there is no such preset
        """
        if name not in TEMPLATES:
            raise unknown_name("prompt preset", name, TEMPLATES)
        return cls(TEMPLATES[name], PLAIN[name])

    def check(self) -> None:
        """Check that there is something to ask, and somewhere to ask it.

        Raises:
            LoraclrError: a template without `{trigger}`, or nothing to ask
        """
        if not self.templates:
            raise LoraclrError("There are no prompt templates: give at least one with {trigger} in it.")
        if not self.plain:
            raise LoraclrError("There are no plain prompts: give at least one that calls no concept (--plain).")
        for template in self.templates:
            if "{trigger}" not in template:
                raise LoraclrError(f"The prompt template {template!r} has no {{trigger}}: say where the trigger goes.")
        if self.bank_name not in (*BANKS, NO_BANK):
            raise unknown_name("bank of phrases", self.bank_name, (*BANKS, NO_BANK))

    def with_quality(self, prompt: str) -> str:
        return ", ".join(part for part in (prompt, self.quality) if part)


def is_background(concept) -> bool:
    """Whether a concept changes everything without being called: a style without trigger words."""
    return concept.kind == "style" and not concept.trigger


def concept_prompts(concept, options: PromptOptions) -> tuple[str, ...]:
    """The prompts a concept is recorded on."""
    if concept.prompts:
        prompts: Sequence[str] = concept.prompts
    elif concept.kind == "style":
        prompts = [f"{prompt}, {concept.trigger}" if concept.trigger else prompt for prompt in options.plain]
    else:
        # where prompts are only counted nobody has looked for the words yet
        prompts = [template.replace("{trigger}", concept.trigger or "") for template in options.templates]
    return tuple(options.with_quality(prompt) for prompt in prompts)


def check_prompts(concepts: Sequence, options: PromptOptions) -> None:
    """Refuse concepts that nothing in the prompts tells apart.

    Raises:
        LoraclrError: a subject without trigger words, or two concepts with the same ones
    """
    options.check()
    callers: dict[tuple[str, ...], str] = {}
    for concept in concepts:
        if is_background(concept):
            continue
        if not concept.trigger and not concept.prompts:
            raise LoraclrError(
                f"{concept.label} has no trigger words, and nothing in the prompts would call it: "
                "give it some (trigger=…), or say that it is a style (kind=style)."
            )
        for words in (concept.trigger, *concept.outfits):
            _require_other(replace(concept, trigger=words), options, callers)


def _require_other(concept, options: PromptOptions, callers: dict[tuple[str, ...], str]) -> None:
    """Refuse a concept whose prompts another has.

    Args:
        callers: prompts as the model hears them -> whose they are; these are put there
    """
    prompts = concept_prompts(concept, options)
    # CLIP's tokenizer lowers the case and joins blanks: what differs only there is the same to the model
    heard = tuple(" ".join(prompt.lower().split()) for prompt in prompts)
    if heard in callers:
        raise LoraclrError(
            f"{callers[heard]} and {concept.label} have the same prompts ({prompts[0]!r}, …), so no prompt "
            "could call one without the other: give at least one of them other trigger words or prompts."
        )
    callers[heard] = concept.label


def plain_prompts_that_call(concepts: Sequence, options: PromptOptions) -> list[str]:
    """A warning for each prompt that is meant to call no concept and has one's trigger words in it."""
    warnings = []
    for concept in concepts:
        called = [prompt for prompt in options.plain if contains_words(prompt, concept.trigger or "")]
        if called and not is_background(concept):
            warnings.append(
                f"The prompt {called[0]!r} calls {concept.label} ({concept.trigger}), and is recorded as what the base model "
                "makes of it: take it out of the prompts without concepts, or give the concept other trigger words."
            )
    return warnings
