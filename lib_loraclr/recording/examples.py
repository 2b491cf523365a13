"""What teachers predict along their own denoising paths: the examples that a merge is learnt from, stopped by and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .predictor import Predictor
from .sampling import BATCH, Step, denoising_path, initial_noise
from .teachers import Teacher

#: points of each teacher at which the nearest other concept is looked for
PILOT = 6


@dataclass(frozen=True)
class Examples:
    """What one teacher predicts at `n` points of its own denoising paths; half precision, in RAM.

    Attributes:
        teacher: whose they are
        prompts: the prompt of each point, `n`
        x: noisy latents `[n, c, h, w]`
        t: timesteps `[n]`
        target: the teacher's prediction with the prompt `[n, c, h, w]`
        effect: mean square of what the concept changes in it, against the teacher without the concept, `[n]`; NaN where
            it was not measured
        negative_target: the prediction with the negative prompt and no subject active `[n, c, h, w]`
        other: the nearest other concept's prediction with the prompt `[n, c, h, w]`, or None
    """

    teacher: Teacher
    prompts: tuple[str, ...]
    x: Tensor
    t: Tensor
    target: Tensor
    effect: Tensor
    negative_target: Tensor
    other: Tensor | None = None

    def __len__(self) -> int:
        return len(self.t)

    def select(self, index: Tensor) -> Examples:
        """The points at `index [m]`."""
        fields = ("x", "t", "target", "effect", "negative_target")
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in index.tolist()),
            other=None if self.other is None else self.other[index],
            **{name: getattr(self, name)[index] for name in fields},
        )


@dataclass(frozen=True)
class PathPlan:
    """How many denoising paths each teacher follows, and what is kept of them.

    Attributes:
        seed: of the first path's noise; the following ones count up. The same for every concept, so that the order of
            the concepts changes nothing
        paths: how many; prompts are taken in turn
        steps: of each path
        kept: points of each path that are kept, evenly spread over its steps
        effects: at how many of a teacher's points its concept's effect is measured; None for all
    """

    seed: int
    paths: int
    steps: int
    kept: int
    effects: int | None = None

    @property
    def points(self) -> int:
        """How many points of each teacher are kept."""
        return self.paths * min(self.kept, self.steps)

    def evaluations(self, teacher: Teacher) -> int:
        """How many samples `record_examples` runs through the model for one teacher."""
        measured = (
            0 if teacher.concept is None else min(self.points if self.effects is None else self.effects, self.points)
        )
        return self.paths * 2 * self.steps + self.points + measured


def spread(count: int, most: int) -> Tensor:
    """`min(count, most)` indices below `count`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def record_examples(predictor: Predictor, teacher: Teacher, plan: PathPlan) -> Examples:
    """Follow a teacher's own denoising paths and keep what it predicts on the way."""
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(plan.paths)]
    kept = set(spread(plan.steps, plan.kept).tolist())
    host, active = predictor.host, teacher.active
    x, t, target, texts = [], [], [], []
    for start in range(0, plan.paths, BATCH):
        chunk = prompts[start : start + BATCH]
        noise = initial_noise(host, range(plan.seed + start, plan.seed + start + len(chunk)), *predictor.size)
        conditioning = predictor.encode(active, chunk)
        negative = predictor.encode(active, [predictor.negative_prompt] * len(chunk))
        guidance = predictor.recording.guidance
        with host.apply(predictor.together(active)):
            path = denoising_path(host, noise, conditioning, negative, steps=plan.steps, guidance=guidance)
            for number, step in enumerate(path):
                if not isinstance(step, Step):
                    continue
                predictor.progress.advance(2 * len(chunk), teacher.name)
                if number in kept:
                    x.append(step.x.half().cpu())
                    t.append(step.t.cpu())
                    target.append(step.conditional.half().cpu())
                    texts += chunk
    x, t, target = torch.cat(x), torch.cat(t), torch.cat(target)
    effect = _effect(predictor, teacher, x, t, target, texts, plan.effects)
    negatives = [predictor.negative_prompt] * len(t)
    negative_target = predictor.predict(predictor.background, x, t, negatives, teacher.name)
    return Examples(teacher, tuple(texts), x, t, target, effect, negative_target)


def _effect(  # noqa: PLR0913  (the columns of an example that is not there yet)
    predictor: Predictor, teacher: Teacher, x: Tensor, t: Tensor, target: Tensor, prompts: list[str], most: int | None
) -> Tensor:
    """`Examples.effect`, at `most` of the points; NaN at the others."""
    effect = torch.full((len(t),), torch.nan)
    if teacher.concept is not None:
        at = spread(len(t), len(t) if most is None else most)
        without = predictor.predict(teacher.absent, x[at], t[at], [prompts[i] for i in at], teacher.name)
        effect[at] = (target[at].float() - without.float()).square().mean((1, 2, 3))
    return effect


def add_nearest_other(predictor: Predictor, examples: Sequence[Examples], subjects: Sequence[int]) -> list[Examples]:
    """Give each subject's examples what the nearest other subject predicts for the same inputs and prompts.

    Which one is nearest is found on a few points of each teacher; asking every other concept at every point would cost
    `N - 1` times the teachers' own predictions.
    """
    results = []
    for own in examples:
        rivals = own.teacher.rivals(subjects)
        if not rivals:
            results.append(own)
            continue
        nearest = rivals[0] if len(rivals) == 1 else _nearest(predictor, own, rivals)
        other = predictor.predict(nearest, own.x, own.t, own.prompts, own.teacher.name)
        results.append(replace(own, other=other))
    return results


def _nearest(predictor: Predictor, own: Examples, rivals: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    few = own.select(spread(len(own), PILOT))
    distances = {}
    for rival in rivals:
        prediction = predictor.predict(rival, few.x, few.t, few.prompts, own.teacher.name)
        distances[rival] = float((prediction.float() - few.target.float()).square().mean())
    return min(rivals, key=lambda rival: distances[rival])
