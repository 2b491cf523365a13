"""Shares with their intervals, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

#: two-sided 95 % points of Student's t for 1, 2, … degrees of freedom
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def wilson(successes: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.96
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by Student's t; that of one value is the value itself."""
    number = len(values)
    mean = sum(values) / number
    if number == 1:
        return mean, mean, mean
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1) / number)
    half = deviation * (_STUDENT[number - 2] if number - 2 < len(_STUDENT) else 1.96)
    return mean, mean - half, mean + half


def share(counts: Sequence[Sequence[int]]) -> str:
    """A share with its interval, of `(successes, count)` for each seed.

    Of one seed the interval is that of so many pictures; of several that of their mean, in which the merges differ too.
    """
    counts = [pair for pair in counts if pair[1]]
    if not counts:
        return ""
    if len(counts) == 1:
        (successes, count), *_ = counts
        lower, upper = wilson(successes, count)
        return f"{successes / count:.2f} ({lower:.2f}–{upper:.2f})"
    mean, lower, upper = mean_interval([successes / count for successes, count in counts])
    return f"{mean:.2f} ({max(0.0, lower):.2f}–{min(1.0, upper):.2f})"


def outcomes(found: Sequence[Mapping[str, Sequence[int]] | None]) -> str:
    """Right, swapped, one twice, neither: of pictures with two concepts, as `protocol.told` counts them, for each seed; nothing
    where there are none."""
    told = [own for own in found if own and own["right"][1]]
    if not told:
        return ""
    others = [mean([own[kind][0] / own[kind][1] for own in told]) for kind in ("swapped", "twice", "neither")]
    return " / ".join([share([own["right"] for own in told]), *others])


def mean(values: Sequence[float | None], digits: int = 2) -> str:
    """The mean of those that are known, or nothing."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else ""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
