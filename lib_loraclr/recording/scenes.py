"""Scenes: what teachers predict side by side, as one wide picture that shows several subjects.

A picture whose windows are denoised by themselves, each by the model with one subject's LoRA, shows each subject in its
window; so what the teachers predict in one slot, put side by side, is what a merge should predict for a prompt that names
them in this order. That is a collage teacher; it costs no evaluation. The other subject's prediction on the same window
says in which direction the merge must not go.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .examples import Examples


@dataclass(frozen=True)
class Scene:
    """Points of several teachers in one slot, left to right.

    Attributes:
        points: of which examples, and which of them
    """

    points: tuple[tuple[Examples, int], ...]

    @property
    def prompt(self) -> str:
        """What the merge is asked."""
        (first, k), *others = self.points
        if self.negative:
            return first.prompts[k]
        return first.teacher.prompt_beside([own.teacher for own, _ in others], first.slots[k])

    @property
    def negative(self) -> bool:
        """Whether the negative prompt is asked."""
        own, k = self.points[0]
        return own.slots[k].negative

    @property
    def t(self) -> Tensor:
        """The timestep, `[]`."""
        own, k = self.points[0]
        return own.t[k]

    @property
    def subjects(self) -> tuple[int, ...]:
        """The concepts, left to right."""
        return tuple(own.teacher.concept for own, _ in self.points)

    def beside(self, column: str) -> Tensor:
        """A column of the examples, side by side: `[c, h, windows * w]`."""
        return torch.cat([getattr(own, column)[k] for own, k in self.points], dim=-1)

    def rivals(self) -> tuple[Tensor, Tensor]:
        """What the partners would predict, side by side `[c, h, windows * w]`, and in which windows that partner is in the
        scene too `[windows]`; elsewhere the target stands."""
        subjects, parts, there = self.subjects, [], []
        for own, k in self.points:
            partner = own.slots[k].partner.get(own.teacher.concept)
            has = own.other is not None and bool(own.has_other[k]) and partner in subjects
            parts.append(own.other[k] if has else own.target[k])
            there.append(has)
        return torch.cat(parts, dim=-1), torch.tensor(there)


def make_scenes(examples: Sequence[Examples], *, windows: int) -> list[Scene]:
    """Every scene of so many subjects that the recordings hold.

    Two stand beside each other where they are partners in their slot, in both orders, so that their number grows with the number
    of concepts and not with that of pairs. Of three, the third and its place are drawn by lot for each row: by any rule that goes
    with the slot's number they would go with who the partners are, and most orders would never be seen.
    """
    called = {own.teacher.concept: own for own in examples if own.teacher.in_scenes}
    if len(called) < windows:
        return []
    places = {concept: {slot.number: k for k, slot in enumerate(own.slots)} for concept, own in called.items()}
    order = sorted(called)
    scenes = []
    for slot in called[order[0]].slots:
        drawn = random.Random(f"{slot.part.value} {slot.number} scenes")
        for a, b in slot.partner.items():
            row = [a, b]
            if windows == 3:
                row.insert(drawn.randrange(3), drawn.choice([c for c in order if c not in row]))
            if all(slot.number in places[concept] for concept in row):
                scenes.append(Scene(tuple((called[concept], places[concept][slot.number]) for concept in row)))
    return scenes


def count_pairs(points: int, subjects: int) -> int:
    """How many scenes of two `make_scenes` makes: at each point, of an odd number one has no partner."""
    return points * (subjects - subjects % 2) if subjects > 1 else 0
