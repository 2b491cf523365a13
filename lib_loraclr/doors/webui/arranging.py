"""Send to txt2img with an arrangement: the fields of an extension that draws regions are filled as from a picture's infotext.

Regional Prompter (AUTOMATIC1111) and Forge Couple (Forge) tell the WebUI by which names their fields stand in infotexts, and the
WebUI pastes them. Where neither is installed the prompt alone says who stands where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modules import infotext_utils, shared

from ...errors import LoraclrError
from ...hosts import running
from ...request import MergeRequest
from .arranging_fields import COLUMNS

#: name of an extension -> a field by which its being there is told
_EXTENSIONS = {"Regional Prompter": "RP Active", "Forge Couple": "forge_couple"}
#: fields of txt2img that stay as they are
_KEPT = ("Sampler", "Schedule type", "Denoising strength", "Hires upscale")
#: of a picture, in native widths: in three columns each is narrower, as no checkpoint was trained on pictures so wide
_WIDE = 2


def installed() -> str:
    """The extension whose fields can be filled; empty for none."""
    fields = infotext_utils.paste_fields.get("txt2img", {}).get("fields") or ()
    keys = {key for _, key in fields if isinstance(key, str)}
    return next((name for name, key in _EXTENSIONS.items() if key in keys), "")


def sentence(arrangement: str) -> str:
    """What sending will do; empty where it is as always."""
    if arrangement not in COLUMNS:
        return ""
    extension = installed()
    if extension:
        # their order of prompt and negative prompt is another than it takes it for (its `isvanilla`; WebUI 1.10)
        but = "; choose no DDIM, PLMS or UniPC, with which it swaps them" if extension == "Regional Prompter" else ""
        return f"{extension} will be switched on and filled in, with a region for each concept{but}."
    return (
        "Neither Regional Prompter (AUTOMATIC1111) nor Forge Couple (Forge) is installed, so the prompt alone will say who "
        "stands where: of two most pictures are right, of three many are not."
    )


def infotext(request: MergeRequest, tag: str, arrangement: str, now: Mapping[str, str]) -> str:
    """What the WebUI pastes into txt2img.

    Args:
        request: of the merge
        tag: of the new LoRA; empty for a checkpoint
        arrangement: one of `COLUMNS`
        now: what stands in txt2img, by its names in an infotext: what that does not name it resets

    Raises:
        LoraclrError: there are too few subjects
    """
    number = COLUMNS[arrangement]
    subjects = [c for c in request.concepts if c.kind == "subject" and c.trigger]
    if len(subjects) < number:
        raise LoraclrError(
            f"{arrangement} takes {number} subjects, and the merge has {len(subjects)}: choose another arrangement."
        )
    styles = [c.trigger for c in request.concepts if c.kind == "style" and c.trigger]
    everywhere = [part for part in (*styles, request.prompts.quality) if part]
    common = ", ".join(filter(None, (tag, *everywhere)))
    words = [c.trigger for c in subjects[:number]]
    asked = [request.prompts.templates[0].replace("{trigger}", trigger) for trigger in words]
    extension = installed()
    prompt = {
        "Regional Prompter": _regional(tag, [", ".join([own, *everywhere]) for own in asked]),
        "Forge Couple": "\n".join([common or "best quality", *asked]),
        "": ", ".join(filter(None, (_together(request, words), common))),
    }[extension]
    side = request.recording.width or running.peek().default_size
    figures = {
        "Size": f"{_WIDE * side}x{request.recording.height or side}",
        **_kept(now),
        **_regions(extension, number),
    }
    parameters = ", ".join(f"{key}: {_quoted(value)}" for key, value in figures.items())
    return "\n".join([prompt, f"Negative prompt: {now.get('Negative prompt', '')}", parameters])


def _regional(tag: str, regions: Sequence[str]) -> str:
    """A prompt for Regional Prompter, with the tag in it once: a common prompt would stand before every region, and the WebUI
    adds up a LoRA that is named several times."""
    first, *others = regions
    return " BREAK\n".join([f"{tag} {first}".strip(), *others])


def _together(request: MergeRequest, words: Sequence[str]) -> str:
    """All of them in one prompt, in the person's own words for two."""
    *others, last = words
    return request.prompts.pair.replace("{first}", ", ".join(others)).replace("{second}", last)


def _kept(now: Mapping[str, str]) -> dict[str, str]:
    """What would be reset if it were not named."""
    found = {
        **{key: now.get(key, "") for key in _KEPT},
        "Clip skip": str(getattr(shared.opts, "CLIP_stop_at_last_layers", 1)),
        "RNG": getattr(shared.opts, "randn_source", ""),
        "Emphasis": getattr(shared.opts, "emphasis", ""),
    }
    return {key: value for key, value in found.items() if value}


def _regions(extension: str, number: int) -> dict[str, Any]:
    """The extension's fields, by the names that it gives them in infotexts."""
    if extension == "Regional Prompter":
        return {
            "RP Active": True,
            "RP Divide mode": "Matrix",
            "RP Matrix submode": "Columns",
            "RP Calc Mode": "Attention",
            "RP Ratios": ",".join(["1"] * number),
            "RP Use Base": False,
            "RP Use Common": False,
            "RP Use Ncommon": False,
            "RP Flip": False,
        }
    if extension == "Forge Couple":
        return {
            "forge_couple": True,
            "forge_couple_mode": "Basic",
            "forge_couple_direction": "Horizontal",
            "forge_couple_background": "First Line",
            "forge_couple_background_weight": 0.5,
        }
    return {}


def _quoted(value: Any) -> str:
    """As the WebUI writes it into an infotext."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",\n:") else text
