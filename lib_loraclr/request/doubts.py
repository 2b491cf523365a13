"""What can be merged and is hardly meant: weights that no prompt would have, and words that call two concepts."""

from __future__ import annotations

from collections.abc import Sequence

from .phrases import contains_words
from .prompts import is_background

#: strength beyond which hardly a LoRA draws what it was trained to
STRONGEST = 2.0


def unusual_weights(concepts: Sequence) -> list[str]:
    """A warning for each concept whose weight is far from what a prompt would give it."""
    warnings = []
    for concept in concepts:
        weights = {"text encoder": concept.te_weight, "UNet": concept.unet_weight}
        if concept.te_weight == concept.unet_weight:
            weights = {"": concept.te_weight}
        for part, weight in weights.items():
            what = f"The {part} weight of {concept.label}" if part else f"The weight of {concept.label}"
            if weight < 0:
                warnings.append(
                    f"{what} is {weight:g}: below 0 a LoRA takes away what it was trained on, and the merge will do the same. "
                    "Give it a weight above 0 if it is to be drawn."
                )
            elif weight > STRONGEST:
                warnings.append(
                    f"{what} is {weight:g}, and above {STRONGEST:g} hardly a LoRA draws what it was trained on: most are made "
                    "for 1."
                )
    return warnings


def words_within_words(concepts: Sequence) -> list[str]:
    """A warning for each two concepts of which one's trigger words have the other's among them."""
    called = [concept for concept in concepts if concept.trigger and not is_background(concept)]
    return [
        f"The trigger words of {longer.label} ({longer.trigger}) have those of {shorter.label} ({shorter.trigger}) among them, "
        f"so every prompt for the one calls the other too: give {longer.label} words of its own, or leave one of them out."
        for longer in called
        for shorter in called
        if longer is not shorter
        and longer.trigger != shorter.trigger
        and contains_words(longer.trigger, shorter.trigger)
    ]
