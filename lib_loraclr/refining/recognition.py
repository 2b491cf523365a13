"""Whom the merged model draws: at how many unseen points its prediction is nearest to that of the concept that was called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Deltas
from ..recording import BATCH, Examples, PathPlan, Predictor, Teacher, count_pairs, evaluated, make_scenes, spread

#: points of each concept that are looked at: between so few and so many, and as many questions for all concepts together
LEAST_POINTS, MOST_POINTS, QUESTIONS = 4, 16, 128
#: scenes of each concept that are looked at
SCENES = 8


@dataclass(frozen=True)
class Candidates:
    """What stands to choose from at some points of one concept.

    Attributes:
        examples: the points; their targets are the concept's own predictions
        concepts: whose predictions the others are; None is the model without the concept
        predictions: `[k, n, c, h, w]` fp16
    """

    examples: Examples
    concepts: tuple[int | None, ...]
    predictions: Tensor


@dataclass(frozen=True)
class Recognition:
    """Whom the model draws.

    Attributes:
        taken_for: concept -> whom it is taken for -> share of its points; None is nobody: the model as if the concept were
            not there
        together: `(left, right)` -> share of scenes in which both windows are nearer to the right concept than to the other
    """

    taken_for: Mapping[int, Mapping[int | None, float]]
    together: Mapping[tuple[int, int], float]

    def recognised(self, concept: int) -> float | None:
        """The share of a concept's points at which it is taken for itself."""
        own = self.taken_for.get(concept)
        return None if own is None else own.get(concept, 0.0)


def points_of(concepts: int) -> int:
    """How many points of each concept are looked at: fewer where there are many, so that the work grows with their number."""
    return max(LEAST_POINTS, min(MOST_POINTS, QUESTIONS // max(1, concepts)))


def gather_candidates(predictor: Predictor, examples: Sequence[Examples]) -> list[Candidates]:
    """For each concept's points, what every other subject would predict in its own words, and what the model without it would."""
    subjects = [own for own in examples if own.teacher.in_scenes]
    called = [own for own in examples if own.teacher.concept is not None]

    def looked_at(own: Examples) -> tuple[Examples, list[Teacher]]:
        """Its points, and the teachers of all others."""
        few = own.select(spread(len(own), _looked_at(len(own), own.teacher, len(subjects))))
        others = [other.teacher for other in subjects if other is not own] if own in subjects else []
        return few, others

    def gather(place: int) -> Candidates:
        own = called[place]
        few, others = looked_at(own)
        asked = [(other.active, [other.prompt(slot) for slot in few.slots]) for other in others]
        asked.append((own.teacher.absent, list(few.prompts)))
        predictions = [predictor.predict(active, few.x, few.t, prompts, own.teacher.name) for active, prompts in asked]
        return Candidates(few, (*(other.concept for other in others), None), torch.stack(predictions))

    def told(place: int) -> None:
        few, others = looked_at(called[place])
        predictor.progress.found(len(few) * (len(others) + 1))

    return predictor.processes.each(len(called), gather, told)


def _looked_at(points: int, teacher: Teacher, subjects: int) -> int:
    return min(points, max(LEAST_POINTS, round(points_of(subjects) * teacher.share)))


def questions(teachers: Sequence[Teacher], plan: PathPlan) -> int:
    """How many evaluations `gather_candidates` and `recognise` take together."""
    subjects, asked = sum(teacher.in_scenes for teacher in teachers), 0
    for teacher in teachers:
        if teacher.concept is not None:
            points = _looked_at(plan.of(teacher).points, teacher, subjects)
            # the others or the absent one, and the merge itself
            asked += points * ((subjects if teacher.in_scenes else 1) + 1)
    return asked + min(count_pairs(plan.points, subjects), SCENES * subjects)


@torch.no_grad()
def recognise(
    predictor: Predictor, deltas: Deltas, candidates: Sequence[Candidates], examples: Sequence[Examples]
) -> Recognition:
    """Whom the model with `deltas` draws.

    Args:
        candidates: from `gather_candidates`
        examples: those that scenes are made of
    """

    def nearest(place: int) -> list[int]:
        """Of each point, whose prediction is nearest: 0 is the concept's own."""
        few = candidates[place].examples
        prediction = _predict(predictor, few.x, few.t, few.prompts)
        others = candidates[place].predictions
        distances = [_distance(prediction, few.target), *(_distance(prediction, p) for p in others)]
        return torch.stack(distances).argmin(0).tolist()

    def told(place: int) -> None:
        predictor.progress.found(len(candidates[place].examples))

    counts: dict[int, Counter[int | None]] = {}
    with predictor.host.apply(deltas):
        for own, places in zip(candidates, predictor.processes.each(len(candidates), nearest, told), strict=True):
            names = (own.examples.teacher.concept, *own.concepts)
            # a style is looked at on plain prompts and on every subject
            counts.setdefault(names[0], Counter()).update(names[place] for place in places)
        together = _together(predictor, examples)
    taken = {concept: {name: count / seen.total() for name, count in seen.items()} for concept, seen in counts.items()}
    return Recognition(taken, together)


def _together(predictor: Predictor, examples: Sequence[Examples]) -> dict[tuple[int, int], float]:
    """`Recognition.together`, with the changed weights in place."""
    scenes = make_scenes(examples, windows=2)
    count = len({concept for scene in scenes for concept in scene.subjects})
    scenes = [scenes[i] for i in spread(len(scenes), SCENES * count).tolist()] if scenes else []
    parts = [scenes[start : start + BATCH] for start in range(0, len(scenes), BATCH)]

    def both_right(place: int) -> list[bool]:
        part = parts[place]
        x = torch.stack([scene.beside("x") for scene in part])
        t = torch.stack([scene.t for scene in part])
        prediction = _predict(predictor, x, t, [scene.prompt for scene in part])
        target = torch.stack([scene.beside("target") for scene in part]).float()
        other = torch.stack([scene.rivals()[0] for scene in part]).float()
        nearer = [
            _distance(p, a) < _distance(p, b)
            for p, a, b in zip(prediction.chunk(2, -1), target.chunk(2, -1), other.chunk(2, -1), strict=True)
        ]
        return (nearer[0] & nearer[1]).tolist()

    def told(place: int) -> None:
        predictor.progress.found(len(parts[place]))

    right: dict[tuple[int, int], list[bool]] = {}
    for part, found in zip(parts, predictor.processes.each(len(parts), both_right, told), strict=True):
        for scene, both in zip(part, found, strict=True):
            right.setdefault(scene.subjects, []).append(both)
    return {pair: sum(both) / len(both) for pair, both in sorted(right.items())}


def _predict(predictor: Predictor, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
    device, results = predictor.host.device, []
    for start in range(0, len(t), BATCH):
        part = slice(start, start + BATCH)
        conditioning = predictor.host.encode(list(prompts[part]))
        output = evaluated(predictor.host, x[part].to(device).float(), t[part].to(device), conditioning)
        results.append(output.cpu())
        predictor.progress.advance(len(output))
    return torch.cat(results)


def _distance(prediction: Tensor, other: Tensor) -> Tensor:
    return (prediction - other.float()).square().mean((1, 2, 3))
