"""What name and metadata tell of a LoRA's training: how much of the text encoder it used, and whether it is a concept at all.

LoRAs that make a model draw in a few steps (LCM, Lightning, Turbo, Hyper, …) are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: what they are called, each letter of it a word of its own
_NAMES = {"LCM": r"lcm", "TCD": r"tcd", "DMD": r"dmd2?", "PCM": r"pcm"}
#: words that other LoRAs are called by too: only beside a family or a number of steps
_WORDS = {"Lightning": r"lightning", "Turbo": r"turbo", "Hyper": r"hyper"}
_BESIDE = re.compile(r"(?<![a-z])(?:sd|sdxl|xl|sd\d?|sd[-_ ]?1[._]?5|\d+[-_ ]?steps?)(?![a-z])")
#: metadata that name a file, or say what it is
_TOLD = ("ss_output_name", "modelspec.title", "modelspec.architecture", "modelspec.description", "ss_training_comment")


def few_steps(name: str, metadata: Mapping[str, str]) -> str | None:
    """What kind of few-step LoRA a file looks like; None where nothing looks like one.

    Args:
        name: of the file, without folder and extension
        metadata: of the file
    """
    for text in (name, *(metadata.get(told, "") for told in _TOLD)):
        text = text.lower()
        for kind, pattern in (_NAMES | _WORDS).items():
            match = re.search(rf"(?<![a-z0-9]){pattern}(?![a-z])", text)
            if match and (kind in _NAMES or _BESIDE.search(text[: match.start()] + " " + text[match.end() :])):
                return kind
    return None


def few_steps_warning(label: str, kind: str) -> str:
    """Why such a LoRA is better left out of a merge.

    Args:
        kind: from `few_steps`
    """
    return (
        f"{label} looks like a {kind} LoRA, which makes a model draw in few steps: that changes every step of every picture and "
        "is no concept, and a merge is recorded at the steps and the guidance that such LoRAs are made to replace. Leave it out, "
        "and write its tag beside the merged LoRA's."
    )


def clip_skip(metadata: Mapping[str, str]) -> int:
    """Which layer of the text encoder a LoRA was trained on, counted from the last, 1; 0 where nothing tells (`ss_clip_skip`)."""
    said = metadata.get("ss_clip_skip", "").strip()
    return int(said) if re.fullmatch(r"[1-9]|1[0-2]", said) else 0
