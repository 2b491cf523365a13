"""What squared errors at the model's output are measured in: the concepts' own effects, at every noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recording import Examples
from ..solving import units

#: of the polynomial for effects by noise level, and how many measured points it needs
_DEGREE, _LEAST_MEASURED = 2, 12


@dataclass(frozen=True)
class NoiseLevels:
    """How large concepts' effects are at each noise level, beside their mean.

    A concept changes the prediction by far more where little noise is left than where it decides what is drawn at all. With one
    unit for all noise levels the fine ones would have nearly all of the weight, and who stands where is decided at the others.

    Attributes:
        coefficients: of a polynomial of the noise level for the logarithm of the effect
        last: the highest timestep
    """

    coefficients: tuple[float, ...]
    last: int

    @classmethod
    def fit(cls, examples: Sequence[Examples]) -> NoiseLevels:
        """Least squares over all points at which effects were measured; level where they are too few to tell."""
        levels, logarithms, last = [], [], max((int(own.t.max()) for own in examples), default=1)
        for own in examples:
            known = own.effect > 0  # not where it was not measured
            if own.teacher.concept is not None and known.any():
                levels.append(own.t[known].double() / max(1, last))
                logarithms.append((own.effect[known].double() / own.effect[known].double().mean()).log())
        if sum(map(len, levels)) < _LEAST_MEASURED:
            return cls((0.0,), last)
        t, y = torch.cat(levels), torch.cat(logarithms)
        powers = torch.stack([t**power for power in range(_DEGREE + 1)], dim=1)
        # a little of a ridge, for where all points have one noise level
        gram = powers.mT @ powers + 1e-6 * len(t) * torch.eye(_DEGREE + 1, dtype=powers.dtype)
        return cls(tuple(torch.linalg.solve(gram, powers.mT @ y).tolist()), last)

    def __call__(self, t: Tensor) -> float:
        """The effect at a timestep, as a share of the mean."""
        level = float(t) / max(1, self.last)
        return math.exp(sum(c * level**power for power, c in enumerate(self.coefficients)))


def scales(examples: Sequence[Examples]) -> dict[str, float]:
    """What each teacher's squared errors are divided by: its concept's own effect (`solving.units`)."""
    measured = [own.teacher.concept is not None and not own.effect.isnan().all() for own in examples]
    effects = [float(own.effect.nanmean()) if known else None for own, known in zip(examples, measured, strict=True)]
    return {own.teacher.name: unit for own, unit in zip(examples, units(effects), strict=True)}


def scales_with_subjects(examples: Sequence[Examples]) -> dict[str, float]:
    """The same, but of a style on a subject in what both change: in that of the style alone, which is a fraction of the
    subject's, errors in the subject would count several times over."""
    own = scales(examples)
    subjects = {
        one.teacher.concept: own[one.teacher.name] for one in examples if one.teacher.words and not one.teacher.guest
    }
    return {
        one.teacher.name: own[one.teacher.name]
        + sum(subjects.get(i, 0.0) for i in one.teacher.active if one.teacher.guest)
        for one in examples
    }
