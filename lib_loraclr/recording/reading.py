"""How a merge's prompts are read by the text encoder: from which layer, and whether brackets are weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..files import clip_skip
from ..model import SD1, Host
from ..request import PromptOptions, has_weights

if TYPE_CHECKING:
    from .inputs import InputLora


def recorded_clip_skip(wanted: int, inputs: Sequence[InputLora], host: Host) -> tuple[int, list[str]]:
    """The clip skip to record with (`Host.skipping`), and what a person should know of it.

    Args:
        wanted: as the request has it; 0 for that of the LoRAs
        inputs: whose metadata say what they were trained with, or nothing

    Returns:
        0 where neither says anything
    """
    trained = {given.concept.label: clip_skip(given.file.metadata) for given in inputs}
    trained = {label: skip for label, skip in trained.items() if skip}
    counts = Counter(trained.values())
    # of those that as many LoRAs say the least, which reads most of the text encoder
    chosen = wanted or min(counts, key=lambda skip: (-counts[skip], skip), default=0)
    if host.family is not SD1:
        others = [label for label, skip in trained.items() if skip > 2]
        return 0, [
            f"{label} was trained with clip skip {trained[label]}, and {host.family.name} is read from the last layer but one "
            "(2) everywhere: it may do less here."
            for label in others
        ]
    if not chosen:
        return 0, []
    warnings = []
    if len(counts) > 1:
        said = ", ".join(f"{label} with {skip}" for label, skip in trained.items())
        warnings.append(
            f"The LoRAs were trained with different clip skips ({said}): {chosen} is recorded (--clip-skip)."
        )
    with host.skipping(chosen):
        used = host.clip_skip
    if used != chosen:
        who = "The merge is asked for" if wanted else f"{', '.join(trained)}: trained"
        warnings.append(
            f"{who} with clip skip {chosen}, and the WebUI's setting is {used}: what is recorded is at {used}. Set Settings > "
            f"Stable Diffusion > Clip skip to {chosen} before the merge, and when you draw."
        )
    elif chosen > 1 and host.name == "diffusers":
        warnings.append(
            f"The merge is recorded with clip skip {chosen}: set Clip skip to {chosen} when you draw with it."
        )
    return chosen, warnings


def unweighted_prompts(prompts: PromptOptions, host: Host) -> list[str]:
    """A warning where prompts of a request have weights that the host does not give their words."""
    texts = (*prompts.templates, *prompts.plain, prompts.quality, prompts.negative)
    weighted = [text for text in texts if has_weights(text)]
    return [unweighted(weighted[0])] if weighted and not host.weighs_words else []


def unweighted(prompt: str) -> str:
    """The warning about a prompt with weights on a host that has none."""
    return (
        f"{prompt!r} has weights in brackets, which the WebUI gives its words: stand-alone they are read without. Merge in the "
        "WebUI, take the brackets out, or write \\( and \\) for brackets that are meant as such."
    )
