"""Whose a LoRA is and on what terms: author and licence as files name them, and what the licence says of merging and selling.

A hint for the person who publishes the merge and no legal advice: only what the files themselves say is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: metadata that name them, in the order in which they are believed
_LICENCE = ("modelspec.license", "license", "licence", "ss_license")
_AUTHOR = ("modelspec.author", "author", "creator", "ss_author")
#: where a merged file keeps whose it was made from
CREDITS = "loraclr.credits"
#: characters of a name that are carried on; a file could hold a book
_LONGEST = 300
#: merges of merges that are told apart
_DEEPEST = 4

_SEPARATED = r"(?<![a-z0-9]){}(?![a-z0-9])"
_FORBIDS_MERGING = re.compile(
    "|".join(
        (
            _SEPARATED.format(r"nd"),
            r"no[\s_-]?deriv",
            r"(?:no|not|don'?t)[\s_-]+(?:be[\s_-]+)?(?:re)?merg",
            r"all rights reserved",
        )
    )
)
_FORBIDS_SELLING = re.compile(
    "|".join(
        (
            _SEPARATED.format(r"nc"),
            r"non[\s_-]?commercial",
            r"no[\s_-]+commercial",
            r"(?:no|not|don'?t)[\s_-]+(?:be[\s_-]+)?(?:re)?s(?:ell|old|ale)",
            r"research[\s_-]+only",
            r"all rights reserved",
        )
    )
)
_SAME_LICENCE = re.compile(
    "|".join((_SEPARATED.format(r"sa"), r"share[\s_-]?alike", _SEPARATED.format(r"a?gpl[\w.-]*")))
)
_LIMITS_USE = re.compile(r"rail")


@dataclass(frozen=True)
class Terms:
    """What a file says of its author and its licence.

    Attributes:
        author, licence: as it has them, in one line; empty where it names none
    """

    author: str
    licence: str

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Terms:
        return cls(_first(metadata, _AUTHOR), _first(metadata, _LICENCE))

    def conditions(self) -> tuple[str, ...]:
        """What the licence asks of whoever merges the file, each as the rest of a sentence."""
        text = self.licence.lower()
        found = []
        if _FORBIDS_MERGING.search(text):
            found.append("which forbids merging it into another file: ask its author before you publish the merge")
        if _FORBIDS_SELLING.search(text):
            found.append("which forbids selling it or using it commercially, and so the merge")
        if _SAME_LICENCE.search(text):
            found.append("which asks that the merge is published under the same licence")
        if _LIMITS_USE.search(text):
            found.append("whose limits of use must be passed on with the merge")
        return tuple(found)


def _first(metadata: Mapping[str, str], names: tuple[str, ...]) -> str:
    texts = (_line(metadata.get(name, "")) for name in names)
    return next(filter(None, texts), "")


def _line(text: object) -> str:
    """A text as one line of bounded length."""
    if not isinstance(text, str):
        return ""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 4 * _LONGEST]).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def conditions(label: str, metadata: Mapping[str, str]) -> list[str]:
    """What a person should know of a LoRA's licence, and of those that it was itself merged from, before merging it.

    Args:
        label: what the LoRA is called
    """
    told = credit(metadata)
    return [
        f"{name} is under {terms.licence}, {condition}."
        for name, terms in _walk(label, told)
        for condition in terms.conditions()
    ]


def credit(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Whose a file is, in a form that a merged file keeps: `author`, `licence`, and of a merge `made_from` by label."""
    terms = Terms.of(metadata)
    told: dict[str, Any] = {"author": terms.author, "licence": terms.licence}
    try:
        sources = json.loads(metadata.get(CREDITS, "{}"))
    except (ValueError, RecursionError):
        sources = {}
    return {key: value for key, value in {**told, "made_from": _sources(sources, _DEEPEST)}.items() if value}


def _sources(values: object, depth: int) -> dict[str, Any]:
    """The credits of a merge's inputs, of whatever a file holds only what is of that form."""
    if not isinstance(values, dict) or not depth:
        return {}
    found = {}
    for label, value in list(values.items())[:100]:
        if isinstance(value, dict) and _line(label):
            told = {name: _line(value.get(name)) for name in ("author", "licence")}
            told["made_from"] = _sources(value.get("made_from"), depth - 1)
            found[_line(label)] = {name: text for name, text in told.items() if text}
    return found


def _walk(label: str, told: Mapping[str, Any]) -> list[tuple[str, Terms]]:
    """A file and what it was made from, the outermost first."""
    own = [(label, Terms(told.get("author", ""), told.get("licence", "")))]
    inside = told.get("made_from", {})
    return own + [part for name, value in inside.items() for part in _walk(f"{name} (in {label})", value)]


def credit_lines(credits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a card says of whom a merge was made from: `fox by somebody, MIT`.

    Args:
        credits: label -> `credit`
    """
    lines = []
    for label, told in credits.items():
        for name, terms in _walk(label, told):
            by = f" by {terms.author}" if terms.author else ""
            lines.append(f"{name}{by}, {terms.licence or 'licence not named'}")
    return lines
