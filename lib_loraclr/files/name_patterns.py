"""Regular expressions out of files, matched in time that grows with the pattern and the name, whatever they are.

Python's own matcher tries one way after the other: `(a+)+b` on 30 letters takes minutes, and the WebUI's queue waits as long.
Here the set of places that a part of the pattern can end at is carried along, all ways at once (Thompson, CACM 11(6), 1968).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

#: places in a text where a part of the pattern may begin -> those where it ends
_Step = Callable[[str, frozenset[int]], frozenset[int]]

LONGEST_PATTERN = 1000
#: groups inside each other; more would end the recursion that reads them
_DEEPEST = 20
#: steps over a letter that the patterns of one file may take in all, a second or two; files are known to take thousands
MOST_STEPS = 2_000_000
_NAME = re.compile(r"[\w.-]*\Z")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_ESCAPED = re.compile(r"\\([dDsSwW]|[^0-9A-Za-z])", re.ASCII)
_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class NamePatterns:
    r"""Values by patterns for the ends of dotted names, as `peft.utils.other.get_pattern_key` reads them: `(.*\.)?(PATTERN)$`.

    A pattern that is a name stands for that name, its dots for dots. Of regular expressions there are letters, `.`, `[…]`,
    `\d \w \s` and escaped signs, groups, `|`, `* + ?` and `^ $`: more than files are known to have.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """
        Args:
            values: pattern -> value

        Raises:
            ValueError: a pattern is none, too long, or of a form that is not read
        """
        self._left = MOST_STEPS
        self._names: dict[str, int] = {}
        self._patterns: dict[int, _Step] = {}
        self._values = list(values.values())
        for number, pattern in enumerate(values):
            if _NAME.match(pattern):
                self._names[pattern] = number
            else:
                self._patterns[number] = self._read(pattern)

    def find(self, name: str) -> Any:
        """The value of the first pattern that fits; None where none does.

        Raises:
            ValueError: the patterns take too long
        """
        starts = frozenset([0, *(place + 1 for place, letter in enumerate(name) if letter == ".")])
        named = min((self._names[name[at:]] for at in starts if name[at:] in self._names), default=None)
        for number, step in self._patterns.items():
            if named is not None and named < number:
                break
            if len(name) in step(name, starts):
                return self._values[number]
        return None if named is None else self._values[named]

    def _read(self, pattern: str) -> _Step:
        if len(pattern) > LONGEST_PATTERN:
            raise ValueError(f"a pattern has {len(pattern)} characters, and {LONGEST_PATTERN} are read")
        step, end = _Reader(pattern, self._spend).alternatives(0, 0)
        if end != len(pattern):
            raise ValueError(f"the pattern {pattern!r} closes a bracket that it does not open")
        return step

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise ValueError(f"its patterns take more than {MOST_STEPS} steps")


class _Reader:
    """A pattern as steps; each method takes a place in it and gives the step and the place behind it."""

    def __init__(self, pattern: str, spend: Callable[[int], None]) -> None:
        self.pattern, self._spend = pattern, spend

    def alternatives(self, at: int, depth: int) -> tuple[_Step, int]:
        """Up to the end or a closing bracket."""
        if depth > _DEEPEST:
            raise ValueError(f"the pattern {self.pattern!r} has more than {_DEEPEST} groups inside each other")
        branches: list[list[_Step]] = [[]]
        while at < len(self.pattern) and self.pattern[at] != ")":
            if self.pattern[at] == "|":
                branches.append([])
                at += 1
                continue
            step, at = self._repeated(at, depth)
            branches[-1].append(step)
        return _any_of([_sequence(branch) for branch in branches]), at

    def _repeated(self, at: int, depth: int) -> tuple[_Step, int]:
        step, at = self._atom(at, depth)
        sign = self.pattern[at : at + 1]
        if sign in _REPEATS and sign:
            at += 1
            # a lazy repetition matches the same names
            at += self.pattern[at : at + 1] == "?"
            step = _repetition(step, *_REPEATS[sign])
        if self.pattern[at : at + 1] in ("*", "+", "?", "{") and at < len(self.pattern):
            raise ValueError(f"the pattern {self.pattern!r} repeats in a way that is not read")
        return step, at

    def _atom(self, at: int, depth: int) -> tuple[_Step, int]:
        letter = self.pattern[at]
        if letter == "(":
            return self._group(at, depth)
        if letter == "[":
            found = _CLASS.match(self.pattern, at)
            if not found:
                raise ValueError(f"the pattern {self.pattern!r} has a class that is not read")
            try:
                fits = re.compile(found[0]).match
            except re.error as error:
                raise ValueError(
                    f"the pattern {self.pattern!r} has the class {found[0]}, which is none ({error})"
                ) from error
            return self._one(fits), found.end()
        if letter == "\\":
            found = _ESCAPED.match(self.pattern, at)
            if not found:
                raise ValueError(f"the pattern {self.pattern!r} has {self.pattern[at : at + 2]!r}, which is not read")
            return self._one(re.compile(found[0]).match), found.end()
        if letter in "*+?{":
            raise ValueError(f"the pattern {self.pattern!r} repeats nothing")
        steps: dict[str, _Step] = {".": self._one(lambda sign: sign != "\n"), "^": _at_begin, "$": _at_end}
        return steps.get(letter) or self._one(letter.__eq__), at + 1

    def _one(self, fits: Callable[[str], object]) -> _Step:
        """A step over one letter."""

        def walk(name: str, places: frozenset[int]) -> frozenset[int]:
            self._spend(1 + len(places))
            return frozenset(at + 1 for at in places if at < len(name) and fits(name[at]))

        return walk

    def _group(self, at: int, depth: int) -> tuple[_Step, int]:
        begin = at + (3 if self.pattern.startswith("(?:", at) else 1)
        if self.pattern.startswith("?", begin):
            raise ValueError(f"the pattern {self.pattern!r} has a group that looks around, which is not read")
        step, end = self.alternatives(begin, depth + 1)
        if end >= len(self.pattern):
            raise ValueError(f"the pattern {self.pattern!r} opens a bracket that it does not close")
        return step, end + 1


def _at_begin(name: str, places: frozenset[int]) -> frozenset[int]:
    return places & {0}


def _at_end(name: str, places: frozenset[int]) -> frozenset[int]:
    return places & {len(name)}


def _sequence(steps: list[_Step]) -> _Step:
    def walk(name: str, places: frozenset[int]) -> frozenset[int]:
        for step in steps:
            places = step(name, places)
        return places

    return walk


def _any_of(branches: list[_Step]) -> _Step:
    if len(branches) == 1:
        return branches[0]
    return lambda name, places: frozenset().union(*(branch(name, places) for branch in branches))


def _repetition(step: _Step, least: int, most: int | None) -> _Step:
    def walk(name: str, places: frozenset[int]) -> frozenset[int]:
        reached = frozenset() if least else places
        new = places
        while new:
            # only places that are new are gone on from, so there are no more rounds than places
            new = step(name, new) - reached
            reached |= new
            if most == 1:
                break
        return reached

    return walk
