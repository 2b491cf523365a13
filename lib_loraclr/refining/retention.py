"""How much of each concept survives a merge, measured on the model's own predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..model import Deltas
from ..recording import BATCH, Examples, Predictor, Teacher, evaluated
from .scales import NoiseLevels


@dataclass(frozen=True)
class Retention:
    """How much of each concept is left.

    Attributes:
        concepts: one figure per concept, `1 - ||ε_merged - ε_i|| / ||ε_base - ε_i||`, of a style that is called by words in what
            they change; None where the concept changes nothing
        base_drift: `||ε_merged - ε_base|| / mean_i ||ε_i - ε_base||` on prompts without triggers, or None
    """

    concepts: tuple[float | None, ...]
    base_drift: float | None

    @property
    def mean(self) -> float:
        known = [value for value in self.concepts if value is not None]
        return sum(known) / len(known) if known else 0.0

    @property
    def weakest(self) -> float:
        known = [value for value in self.concepts if value is not None]
        return min(known) if known else 0.0


@torch.no_grad()
def squared_errors(predictor: Predictor, deltas: Deltas, examples: Examples, *, units: int = 1) -> torch.Tensor:
    """Mean squared difference between the model with `deltas` and the teacher, `[n]`.

    Args:
        units: of progress per example; 0 where measuring is part of another stage
    """
    with predictor.host.apply(deltas):
        found = predictions(predictor, examples, units=units)
    return (found - examples.target.float()).square().mean((1, 2, 3))


def predictions(predictor: Predictor, examples: Examples, *, units: int) -> torch.Tensor:
    """What the model as it is predicts at the points, `[n, c, h, w]` fp32 on the CPU."""
    device, found = predictor.host.device, []
    for start in range(0, len(examples), BATCH * 2):
        part = slice(start, start + BATCH * 2)
        conditioning = predictor.host.encode(examples.prompts[part])
        noisy, t = examples.x[part].to(device).float(), examples.t[part].to(device)
        found.append(evaluated(predictor.host, noisy, t, conditioning).cpu())
        predictor.progress.advance(units * len(found[-1]), examples.teacher.name)
    return torch.cat(found)


def _errors(predictor: Predictor, deltas: Deltas, examples: Examples, *, units: int) -> torch.Tensor:
    """Mean squared error `[n]`; of a style that is called by words, in what they change.

    Most styles act whether they are called or not. What is asked of a merge is that the words decide, so that is measured; and
    in the difference the error in a subject that the style is shown on, which is larger than the style, is gone.
    """
    if not examples.teacher.by_words:
        return squared_errors(predictor, deltas, examples, units=units)
    without = tuple(examples.teacher.prompt_without_style(slot) for slot in examples.slots)
    with predictor.host.apply(deltas):
        changed = predictions(predictor, examples, units=units) - predictions(
            predictor, replace(examples, prompts=without), units=units
        )
    expected = examples.target.float() - examples.other.float()
    return (changed - expected).square().mean((1, 2, 3))


def questions_each(teacher: Teacher) -> int:
    """How often a merge is asked at a point of a teacher, to tell what is left there."""
    return 2 if teacher.by_words else 1


def measure(
    predictor: Predictor,
    deltas: Deltas,
    examples: Sequence[Examples],
    *,
    single_drift: float | None = None,
    levels: NoiseLevels | None = None,
    units: int = 1,
) -> Retention:
    """Retention of every concept, on examples that were kept for measuring (docs/method.md, "Retention").

    Args:
        deltas: the merged result, layer key -> factors
        examples: of the teachers; a concept taught by several counts the points of all of them
        single_drift: `mean_i ||ε_i - ε_base||` of the examples without triggers, from `drift_of_singles`
        levels: in whose unit each point's squares are measured; None: all in one, where points with little noise weigh most
        units: as in `squared_errors`
    """
    errors, effects = [0.0] * len(predictor.deltas), [0.0] * len(predictor.deltas)
    drift = None
    measured = predictor.processes.each(
        len(examples),
        lambda k: _errors(predictor, deltas, examples[k], units=units),
        lambda k: predictor.progress.found(units * len(examples[k]) * questions_each(examples[k].teacher)),
    )
    for own, squared in zip(examples, measured, strict=True):
        weights = torch.tensor([1 / levels(t) for t in own.t]) if levels else torch.ones(len(own))
        if own.teacher.concept is not None:
            errors[own.teacher.concept] += float((squared * weights).sum())
            effects[own.teacher.concept] += float((own.effect * weights).sum())
        elif single_drift:
            drift = float(squared.mean()) ** 0.5 / single_drift
    values = [1 - (e / f) ** 0.5 if f > 0 else None for e, f in zip(errors, effects, strict=True)]
    return Retention(tuple(values), drift)


def drift_of_singles(predictor: Predictor, examples: Sequence[Examples]) -> float | None:
    """`mean_i ||ε_i - ε_base||` on prompts without triggers: how much the LoRAs, each alone, change what they should not."""
    for own in examples:
        if own.teacher.concept is None:
            there = own.teacher.active
            others = [sorted({*there, i}) for i in range(len(predictor.deltas)) if i not in there]
            measured = predictor.processes.each(
                len(others),
                lambda k: squared_errors(predictor, predictor.together(others[k]), own),  # noqa: B023  (returned from below)
                lambda k: predictor.progress.found(len(own)),  # noqa: B023  (likewise)
            )
            norms = [float(squared.mean()) ** 0.5 for squared in measured]
            return sum(norms) / len(norms) if norms else None
    return None
