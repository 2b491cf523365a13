"""How much of each concept survives a merge, measured on the model's own predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..model import Deltas
from ..recording import BATCH, Examples, Predictor, evaluated
from .scales import NoiseLevels


@dataclass(frozen=True)
class Retention:
    """How much of each concept is left.

    Attributes:
        concepts: one figure per concept, `1 - ||ε_merged - ε_i|| / ||ε_base - ε_i||`; None where the concept changes nothing
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
    errors = []
    device = predictor.host.device
    with predictor.host.apply(deltas):
        for start in range(0, len(examples), BATCH * 2):
            part = slice(start, start + BATCH * 2)
            conditioning = predictor.host.encode(examples.prompts[part])
            noisy, t = examples.x[part].to(device).float(), examples.t[part].to(device)
            output = evaluated(predictor.host, noisy, t, conditioning)
            errors.append((output.cpu() - examples.target[part].float()).square().mean((1, 2, 3)))
            predictor.progress.advance(units * len(output), examples.teacher.name)
    return torch.cat(errors)


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
        lambda k: squared_errors(predictor, deltas, examples[k], units=units),
        lambda k: predictor.progress.found(units * len(examples[k])),
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
