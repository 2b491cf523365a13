"""How many points each teacher has, where they come from, and how is asked there: the slots that all teachers share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..request import Part, Phrases
from .teachers import Slot, Teacher

#: how often a point on a path is asked in the words of its path, and not in others
FOLLOWED = 0.5


@dataclass(frozen=True)
class PathPlan:
    """How many points each teacher has, and where they come from.

    Attributes:
        part: of the bank of phrases
        seed: of everything that is drawn
        paths, steps: denoising paths of each teacher, and steps of each; all their points are kept
        renoised: points besides, on finished pictures with fresh noise
        negative_every: of so many points the negative prompt is asked at one instead; 0: at none
        effects: at how many of a teacher's points its concept's effect is measured; None for all
        partners: whether every point of a subject is also asked as if another subject stood there
    """

    part: Part
    seed: int
    paths: int
    steps: int
    renoised: int = 0
    negative_every: int = 0
    effects: int | None = None
    partners: bool = False

    def of(self, teacher: Teacher) -> PathPlan:
        """Its own part of the plan, for a teacher that has only a share of the points."""
        if teacher.share == 1:
            return self
        paths, renoised = (
            max(1, round(number * teacher.share)) if number else 0 for number in (self.paths, self.renoised)
        )
        return replace(self, paths=paths, renoised=renoised)

    @property
    def points(self) -> int:
        """How many there are."""
        return self.paths * self.steps + self.renoised

    def places(self, teacher: Teacher) -> list[int]:
        """The numbers of the slots that a teacher has points in, in the order of its points."""
        own = self.of(teacher)
        paths = [self.paths * step + path for step in range(own.steps) for path in range(own.paths)]
        return [*paths, *(self.paths * self.steps + k for k in range(own.renoised))]

    def called(self, teacher: Teacher) -> list[int]:
        """Those of its places in which the teacher is called, and not the negative prompt asked."""
        negative = self.negative()
        return [place for place in self.places(teacher) if place not in negative]

    def known(self, teacher: Teacher) -> set[int]:
        """Those of its places in which it is asked what its path was followed with, its prompt or the negative one: what it
        predicts is known from there."""
        # a teacher's own texts are taken in turn, so that as many as possible are asked
        again = range(self.paths) if teacher.texts else self.followed()
        on_paths = {place for place in self.negative() if place < self.paths * self.steps}
        return {*again} & {*self.called(teacher)} | on_paths & {*self.places(teacher)}

    def followed(self) -> set[int]:
        """The slots that are asked as the path that leads there is followed: all first ones, and `FOLLOWED` of the others."""
        later = range(self.paths, self.paths * self.steps)
        chosen = self._random("followed").sample(later, round(FOLLOWED * len(later)))
        return {*range(self.paths), *chosen}

    def negative(self) -> set[int]:
        """The slots in which the negative prompt is asked; of no path all."""
        along = [self.paths * step + path for path in range(self.paths) for step in range(self.steps)]
        along += range(self.paths * self.steps, self.points)
        drawn, every = self._random("negative"), self.negative_every
        starts = range(0, len(along) - every + 1, every) if every else ()
        return {drawn.choice(along[start : start + every]) for start in starts}

    def beside(self, number: int, rounds: Sequence[dict[int, int]]) -> dict[int, int]:
        """Who stands beside whom in a slot: along each path every round in its turn, whatever the number of paths."""
        return rounds[sum(divmod(number, max(1, self.paths))) % len(rounds)]

    def _random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {self.part.value} {what}")

    def evaluations(self, teacher: Teacher, subjects: Sequence[int]) -> int:
        """How many samples `record_examples` runs through the model for one teacher.

        Args:
            subjects: those that can stand beside each other, as `draw_slots` was told
        """
        own, called, rounds = self.of(teacher), self.called(teacher), _rounds(subjects)
        asked = len(self.places(teacher)) - len(self.known(teacher))
        measured = (
            0 if teacher.concept is None else len(called) if own.effects is None else min(own.effects, len(called))
        )
        if teacher.by_words:  # what its words change is its effect
            measured = len(called)
        partners = [teacher.concept in self.beside(place, rounds) for place in called]
        beside = sum(partners) if own.partners and teacher.in_scenes else 0
        return own.paths * 2 * own.steps + asked + measured + beside

    def within(self, points: int) -> PathPlan:
        """The same with at most so many points: first fewer on finished pictures, then fewer paths, then fewer steps."""
        renoised = min(self.renoised, max(0, points - self.paths * self.steps))
        paths = min(self.paths, max(1, points // self.steps))
        steps = min(self.steps, max(2, points // paths))
        return replace(self, renoised=renoised, paths=paths, steps=steps)


def draw_slots(plan: PathPlan, phrases: Phrases, subjects: Sequence[int]) -> list[Slot]:
    """The slots of a plan: first those of each step's paths, then the renoised ones.

    Args:
        subjects: those that can stand beside each other in scenes, as numbers of concepts
    """
    followed, negative, rounds = plan.followed(), plan.negative(), _rounds(subjects)
    # A LoRA draws its concept best in plain words; other media are asked for at the points of its paths.
    paths = [phrases.draw(plain=True) for _ in range(plan.paths)]
    slots = []
    for number in range(plan.points):
        path = number % plan.paths if number in followed else None
        phrase = phrases.draw() if path is None else paths[path]
        partner = plan.beside(number, rounds)
        slots.append(Slot(number, plan.part, phrase, partner, path, number in negative))
    return slots


def _rounds(subjects: Sequence[int]) -> list[dict[int, int]]:
    """The rounds of a tournament, in each of which every subject has one partner at most, and in all of them every other once
    (the circle method)."""
    circle: list[int | None] = [*subjects, *([None] if len(subjects) % 2 else [])]
    if len(circle) < 2:
        return [{}]
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = [(a, b) for a, b in zip(circle[:half], reversed(circle[half:]), strict=True) if None not in (a, b)]
        rounds.append({one: other for a, b in pairs for one, other in ((a, b), (b, a))})
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds
