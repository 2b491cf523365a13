"""Brackets in prompts, as the WebUI reads them: `(word)`, `(word:1.2)` and `[word]` are weights, `\\(` is a bracket.

The grammar is that of the WebUI's `modules/prompt_parser.py` (`parse_prompt_attention`, v1.10.1).
"""

from __future__ import annotations

import re

_BRACKET = re.compile(r"(?<!\\)[()\[\]]")
_PART = re.compile(
    r"\\(?P<escaped>[()\[\]\\]|)|(?P<open>[(\[])|(?P<weight>:\s*[+-]?[.\d]+\s*\))|(?P<close>[)\]])|[^\\()\[\]:]+|:"
)
_CLOSES = {")": "(", "]": "["}


def escaped(text: str) -> str:
    """Words that are no prompt yet (a tag, a file's name), so that a prompt has them letter by letter.

    Brackets that are escaped already stay as they are: many captions have them so.
    """
    return _BRACKET.sub(lambda match: "\\" + match[0], text)


def words_of(prompt: str) -> str:
    """The words that a text encoder reads of a prompt: brackets and weights gone, escaped brackets as brackets."""
    return _read(prompt)[0]


def has_weights(prompt: str) -> bool:
    """Whether brackets make some of a prompt's words stronger or weaker."""
    return _read(prompt)[1]


def _read(prompt: str) -> tuple[str, bool]:
    words, weighted = [], False
    waiting = {"(": 0, "[": 0}
    for match in _PART.finditer(prompt):
        closed = "(" if match["weight"] else _CLOSES.get(match["close"])
        if match["escaped"] is not None:
            words.append(match["escaped"])
        elif match["open"]:
            waiting[match["open"]] += 1
            weighted = True  # also where nothing closes it
        elif closed and waiting[closed]:
            waiting[closed] -= 1
        else:
            words.append(match[0])
    return "".join(words), weighted
