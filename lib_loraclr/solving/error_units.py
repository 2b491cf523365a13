"""The unit in which a concept's errors are measured, in every layer and at the model's output."""

from __future__ import annotations

from collections.abc import Sequence

#: of the mean effect, the least that a concept's errors are measured in
LEAST_UNIT = 0.01


def units(effects: Sequence[float | None]) -> list[float]:
    """What squared errors are measured in, `e_i`: each concept's own effect, so that all count alike however strong they are.

    Measured in one unit for all, a concept of a tenth of the others' strength would have a hundredth of their weight, and
    little but theirs would be left of it. Where a concept does next to nothing its own effect would demand an exactness
    that nobody sees: the unit is at least `LEAST_UNIT` of the mean.

    Args:
        effects: mean squared size of what each concept changes; None or 0 for the base model, which gets the mean
    """
    known = [effect for effect in effects if effect]
    mean = sum(known) / len(known) if known else 1.0
    return [max(effect, LEAST_UNIT * mean) if effect else mean for effect in effects]
