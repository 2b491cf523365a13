"""The installed LoRAs as the doors show them, and the checkpoint they are held against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from urllib.parse import quote

from ...errors import LoraclrError
from ...hosts.running import InstalledLora, find_lora, installed_loras, loaded_family
from ...request import Concept, parse_lora_argument

#: metadata of a file that says how LoRACLR merged it
RECIPE = "loraclr.request"
#: between the parts of a choice; gradio 3.41 has no labels for a dropdown's values, so the label is the value
_BETWEEN = "  ·  "
_WARNING = "⚠ "
#: emphasis of nothing: `(:1.2)`, `()`, `[]`
_EMPTY_BRACKETS = re.compile(r"[(\[]\s*(?::\s*[\d.]+\s*)?[)\]]")
#: words that joined something to what stands no more: at the beginning, at the end, or an article alone
_HANGING = re.compile(
    r"^(?:(?:a|an|the) )?(?:and|with|or|&|\+)(?= |$)|(?:^| )(?:and|with|or|&|\+)(?: (?:a|an|the))?$|^(?:a|an|the)$",
    re.IGNORECASE,
)
#: what the extension LoRA Block Weight reads in a tag
_BLOCK_WEIGHTS = re.compile(r":((?:lbwe?|start|stop|step)=[^:]*)", re.IGNORECASE)
_TAG = re.compile(r"<(?:lora|lyco):([^>]+)>", re.IGNORECASE)


def obstacle(lora: InstalledLora) -> str | None:
    """Why a LoRA cannot be merged on the loaded checkpoint, as far as the look at its file tells; None where it can."""
    family = loaded_family()
    return lora.obstacle(family.name if family else lora.family)


def require_fitting(lora: InstalledLora) -> None:
    """Refuse a LoRA that cannot be merged on the loaded checkpoint.

    Raises:
        LoraclrError: it cannot be merged on the loaded checkpoint
    """
    reason = obstacle(lora)
    if reason:
        raise LoraclrError(
            f"{lora.name} cannot be merged: {reason}. Leave it out, or load a checkpoint it was made for."
        )


def is_merged(lora: InstalledLora) -> bool:
    """Whether LoRACLR merged it, here or elsewhere."""
    return RECIPE in lora.metadata


def choice(lora: InstalledLora, *, fits: bool) -> str:
    """What the picker lists a LoRA as: folder and name, its alias, and a mark where it does not fit the checkpoint."""
    parts = [f"{lora.folder}/{lora.name}" if lora.folder else lora.name]
    if lora.alias != lora.name:
        parts.append(lora.alias)
    if not fits:
        readable = lora.path.suffix.lower() == ".safetensors"
        parts.append(_WARNING + ("unreadable" if lora.problem else lora.family if readable else lora.path.suffix))
    return _BETWEEN.join(parts)


def name_of(chosen: str) -> str:
    """The LoRA's name in a choice of the picker."""
    return chosen.split(_BETWEEN)[0].rsplit("/", 1)[-1]


def choices(*, rescan: bool = False) -> list[str]:
    """Everything the picker lists; those that do not fit come last.

    Raises:
        LoraclrError: the built-in extension Lora is switched off
    """
    loras = installed_loras(rescan=rescan)
    fitting = [(lora, obstacle(lora) is None) for lora in loras]
    return [choice(lora, fits=fits) for lora, fits in sorted(fitting, key=lambda item: not item[1])]


def still_there(chosen: Sequence[str], listed: Sequence[str]) -> list[str]:
    """A selection after the list was made anew: by name, for marks come and go with the checkpoint."""
    by_name = {name_of(item): item for item in listed}
    return [by_name[name_of(item)] for item in chosen if name_of(item) in by_name]


def preview_url(lora: InstalledLora) -> str | None:
    """Where the WebUI serves the card's picture."""
    if lora.preview is None:
        return None
    path = quote(lora.preview.absolute().as_posix())
    return f"./sd_extra_networks/thumb?filename={path}&mtime={int(lora.preview.stat().st_mtime)}"


def known_as(names: Sequence[str]) -> list[str]:
    """What prompts may call these LoRAs: names and aliases."""
    known = list(names)
    for name in names:
        try:
            known.append(find_lora(name).alias)
        except LoraclrError:  # deleted while the merge waited
            continue
    return list(dict.fromkeys(known))


def from_prompt(prompt: str) -> tuple[list[Concept], str, list[str]]:
    """What a prompt names.

    Returns:
        a concept for each tag (`lora` is the installed name), the prompt without tags, and tags of LoRAs that are not there
    """
    concepts: dict[str, Concept] = {}
    unknown = []
    for inside in _TAG.findall(prompt):
        blocks = _BLOCK_WEIGHTS.findall(inside)
        try:
            given = parse_lora_argument(_BLOCK_WEIGHTS.sub("", inside).strip())
        except LoraclrError as error:
            unknown.append(str(error))
            continue
        try:
            lora = find_lora(given.lora)
        except LoraclrError:  # which names every LoRA that there is
            unknown.append(f"There is no LoRA {given.lora} here: its tag was left out.{_alike(given.lora)}")
            continue
        if blocks:
            unknown.append(
                f"{lora.name}: {', '.join(blocks)} is not taken over: a merge applies a LoRA to all of its blocks alike."
            )
        if given.dyn:
            unknown.append(
                f"{lora.name}: dyn={given.dyn} is not taken over; the command line and HTTP can merge with it."
            )
        concepts[lora.name] = Concept(lora.name, given.te_weight, given.unet_weight, trigger=lora.trigger)
    return list(concepts.values()), without(_TAG.sub("", prompt), ()), unknown


def _alike(name: str) -> str:
    """Which installed LoRA may have been meant."""
    found = get_close_matches(name, [lora.name for lora in installed_loras()], 1)
    return f" Did you mean {found[0]}?" if found else ""


def without(words: str, triggers: Sequence[str]) -> str:
    """A prompt without some trigger words, as a whole or one by one, and without the brackets and commas that are left over."""
    phrases = {part.strip() for trigger in triggers for part in (trigger, *trigger.split(","))} - {""}
    for phrase in sorted(phrases, key=len, reverse=True):
        words = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", "", words, flags=re.IGNORECASE)
    before = None
    while before != words:  # one pair of brackets may stand in another
        before, words = words, _EMPTY_BRACKETS.sub("", words)
        words = re.sub(r"([(\[])[\s,]+", r"\1", words)
        # from the first of many on only, or a long run of them would be tried from each
        words = re.sub(r"(?<![\s,])[\s,]+([)\]]|:\s*[\d.]+\s*\))", r"\1", words)
    return ", ".join(part for part in map(_unjoined, words.split(",")) if part)


def _unjoined(part: str) -> str:
    """A part of a prompt without what joined it to the words that have been taken out: "a … and a castle" is "a castle"."""
    left = " ".join(part.split())
    before = None
    while before != left:
        before, left = left, _HANGING.sub("", left).strip()
    return left
