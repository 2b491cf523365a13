"""What teachers predict: the examples that a merge is learnt from, stopped by and measured on.

Every teacher follows denoising paths of its own and is asked again at their points, each time in other words; and on its
finished pictures with fresh noise, which costs no path. All teachers share the slots (noise level and words) of these points:
what two of them predict in one slot can stand side by side, and is then a scene (`scenes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .path_plan import PathPlan
from .predictor import Predictor
from .sampling import BATCH, Step, denoising_path, initial_noise, timesteps
from .teachers import Slot, Teacher

#: how strongly a style without trigger words acts where the negative prompt is asked. Guidance makes stronger what is not there:
#: a subject, but not a style that is there whole, which then loses wherever the two are at odds (docs/method.md)
IN_NEGATIVE = 0.5
#: noise of one teacher's paths is drawn by seeds from here on; those of the next begin so much later
_SEEDS = 1000


@dataclass(frozen=True)
class Examples:
    """What one teacher predicts at `n` points; half precision, in RAM.

    Attributes:
        teacher: whose they are
        slots: of each point, `n`
        prompts: the prompt of each point, `n`
        x: noisy latents `[n, c, h, w]`
        t: timesteps `[n]`
        target: the teacher's prediction with the prompt, or with the negative one and no subject active, `[n, c, h, w]`
        effect: mean square of what the concept changes in it, against the teacher without the concept, `[n]`; NaN where
            it was not measured
        other: what another would be there, `[n, c, h, w]`, or None: what the slot's partner would predict in its own words, or
            where a style is called, what is to be predicted without it and its words
        has_other: at which points that is known, `[n]`
    """

    teacher: Teacher
    slots: tuple[Slot, ...]
    prompts: tuple[str, ...]
    x: Tensor
    t: Tensor
    target: Tensor
    effect: Tensor
    other: Tensor | None
    has_other: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def select(self, index: Tensor) -> Examples:
        """The points at `index [m]`."""
        fields = ("x", "t", "target", "effect", "has_other")
        return replace(
            self,
            slots=tuple(self.slots[i] for i in index.tolist()),
            prompts=tuple(self.prompts[i] for i in index.tolist()),
            other=None if self.other is None else self.other[index],
            **{name: getattr(self, name)[index] for name in fields},
        )

    @property
    def called(self) -> Examples:
        """The points at which the teacher is called, without those of the negative prompt."""
        return self.select(torch.tensor([k for k, slot in enumerate(self.slots) if not slot.negative]))


def spread(count: int, most: int) -> Tensor:
    """`min(count, most)` indices below `count`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def record_examples(
    predictor: Predictor, teachers: Sequence[Teacher], number: int, plan: PathPlan, slots: Sequence[Slot]
) -> Examples:
    """What a teacher predicts in its slots.

    Args:
        number: of the teacher among `teachers`
        slots: of the whole plan, from `draw_slots`
    """
    teacher, own = teachers[number], plan.of(teachers[number])
    mine = [slots[place] for place in plan.places(teacher)]
    seed = own.seed + number * _SEEDS
    x, t, target, negative = _points(predictor, teacher, own, [slots[path] for path in range(own.paths)], seed)
    known = plan.known(teacher)
    new = [k for k, slot in enumerate(mine) if slot.number not in known]
    subtracted = [k for k, slot in enumerate(mine) if slot.negative]
    target[subtracted] = negative[subtracted]
    asked = _Asked(predictor.record, predictor, teacher, mine, x, t)
    target[new] = asked.target(new)
    other, has_other = (
        asked.others(teachers) if own.partners or teacher.by_words else (None, torch.zeros(len(t), dtype=torch.bool))
    )
    effect = torch.full((len(t),), torch.nan)
    if teacher.by_words:
        effect[has_other] = (target[has_other].float() - other[has_other].float()).square().mean((1, 2, 3))
    elif teacher.concept is not None:
        called = asked.called
        at = [called[k] for k in spread(len(called), len(called) if own.effects is None else own.effects).tolist()]
        effect[at] = (target[at].float() - asked.by(teacher.absent, at).float()).square().mean((1, 2, 3))
    return Examples(teacher, tuple(mine), asked.prompts, x, t, target, effect, other, has_other)


def ask_examples(
    predictor: Predictor, teachers: Sequence[Teacher], teacher: Teacher, slots: Sequence[Slot], x: Tensor, t: Tensor
) -> Examples:
    """What a teacher predicts at points that something else has come by, and what its partners would; kept nowhere, and part of
    another stage.

    Args:
        slots: in whose words it is asked, `n`
        x: noisy latents `[n, c, h, w]` fp16
        t: timesteps `[n]`
    """

    asked = _Asked(partial(predictor.predict, units=0), predictor, teacher, slots, x, t)
    target, effect = asked.target(range(len(t))), torch.full((len(t),), torch.nan)
    return Examples(teacher, tuple(slots), asked.prompts, x, t, target, effect, *asked.others(teachers))


class _Asked:
    """A teacher that is asked at points `[n, c, h, w]`, each in the words of its slot.

    Attributes:
        prompts: what is asked at each point
        called: the numbers of the points at which the teacher is called, and not the negative prompt asked
    """

    def __init__(
        self,
        predict: Callable[..., Tensor],
        predictor: Predictor,
        teacher: Teacher,
        slots: Sequence[Slot],
        x: Tensor,
        t: Tensor,
    ) -> None:
        """
        Args:
            predict: as `Predictor.predict`
        """
        self._predict, self._background, self._teacher, self._slots = predict, predictor.background, teacher, slots
        self._x, self._t = x, t
        self.prompts = tuple(predictor.negative_prompt if slot.negative else teacher.prompt(slot) for slot in slots)
        self.called = [k for k, slot in enumerate(slots) if not slot.negative]

    def by(
        self,
        active: Sequence[int],
        at: Sequence[int],
        prompts: Sequence[str] | None = None,
        *,
        strength: float = 1.0,
    ) -> Tensor:
        """What some concepts predict at some of the points, `[m, c, h, w]` fp16.

        Args:
            prompts: `m`; None: the points' own
            strength: of the concepts
        """
        if not at:
            return self._x[:0]
        prompts = [self.prompts[k] for k in at] if prompts is None else prompts
        return self._predict(active, self._x[at], self._t[at], prompts, self._teacher.name, strength=strength)

    def target(self, at: Sequence[int]) -> Tensor:
        """What the teacher predicts at some of the points, and where the negative prompt is asked the model without subjects,
        `[m, c, h, w]` fp16."""
        target = torch.zeros_like(self._x)
        asked = ((self._background, IN_NEGATIVE, True), (self._teacher.active, 1.0, False))
        for active, strength, negative in asked:
            places = [k for k in at if self._slots[k].negative is negative]
            if places:
                target[places] = self.by(active, places, strength=strength)
        return target[list(at)]

    def others(self, teachers: Sequence[Teacher]) -> tuple[Tensor | None, Tensor]:
        """`Examples.other` and `has_other`."""
        return self._without_style() if self._teacher.by_words else self._partners(teachers)

    def _without_style(self) -> tuple[Tensor, Tensor]:
        """What is predicted without the style and its words, `[n, c, h, w]` fp16, and where it is called `[n]`."""
        called, other = list(self.called), torch.zeros_like(self._x)
        prompts = [self._teacher.prompt_without_style(self._slots[k]) for k in called]
        other[called] = self.by(self._teacher.absent, called, prompts)
        return other, torch.tensor([not slot.negative for slot in self._slots])

    def _partners(self, teachers: Sequence[Teacher]) -> tuple[Tensor | None, Tensor]:
        """What each slot's partner predicts there in its own words, `[n, c, h, w]` fp16 or None, and where there is one `[n]`."""
        concept, beside = self._teacher.concept, {own.concept: own for own in teachers if own.in_scenes}
        scenes = self._teacher.in_scenes
        partners = [slot.partner.get(concept) if scenes and not slot.negative else None for slot in self._slots]
        has = torch.tensor([partner is not None for partner in partners])
        if not has.any():
            return None, has
        other = torch.zeros_like(self._x)
        for partner in sorted({partner for partner in partners if partner is not None}):
            at = [k for k, mine in enumerate(partners) if mine == partner]
            other[at] = self.by(beside[partner].active, at, [beside[partner].prompt(self._slots[k]) for k in at])
        return other, has


def _points(
    predictor: Predictor, teacher: Teacher, plan: PathPlan, first: Sequence[Slot], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A teacher's points, in the order of its slots: noisy latents `[n, c, h, w]` fp16, timesteps `[n]`, and what was predicted
    there as its paths were followed, by the teacher and for the negative prompt, `[n, c, h, w]` fp16 each, zero where none came
    by.

    Args:
        first: the slots of the paths' first step, whose words the paths are followed with
    """
    prompts = [teacher.prompt(slot) for slot in first]
    seeds = (seed, plan.seed if plan.renoised else 0)
    drawn = (predictor.size, plan.paths, plan.steps, plan.renoised, seeds)
    asked = (prompts, predictor.negative_prompt, predictor.recording.guidance, IN_NEGATIVE)
    points = predictor.kept(
        "points",
        (*teacher.active, *predictor.background),
        (drawn, asked),
        lambda: _followed(predictor, teacher, plan, prompts, seed),
        units=2 * plan.paths * plan.steps,
        note=teacher.name,
    )
    # of its own, as what was asked in other words is put into it
    return points["x"], points["t"], points["target"].clone(), points["negative"]


def _followed(
    predictor: Predictor, teacher: Teacher, plan: PathPlan, prompts: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """The points by their names in `Examples`, from paths with these prompts.

    They are paths as the merge is to follow them, which keeps its subjects out of what guidance subtracts: not those of the LoRA
    itself, which changes that too.
    """
    host, guidance = predictor.host, predictor.recording.guidance
    apart = predictor.together(teacher.active), predictor.together(predictor.background, IN_NEGATIVE)
    chunks: list[list[tuple[Tensor, ...]]] = []
    clean = []
    for start in range(0, plan.paths, BATCH):
        asked = prompts[start : start + BATCH]
        noise = initial_noise(host, range(seed + start, seed + start + len(asked)), *predictor.size)
        conditioning = predictor.encode(teacher.active, asked)
        negative = predictor.encode(predictor.background, [predictor.negative_prompt] * len(asked), IN_NEGATIVE)
        chunks.append([])
        path = denoising_path(host, noise, conditioning, negative, steps=plan.steps, guidance=guidance, apart=apart)
        for step in path:
            if isinstance(step, Step):
                predictor.progress.advance(2 * len(asked), teacher.name)
                chunks[-1].append(tuple(own.half().cpu() for own in (step.x, step.conditional, step.unconditional)))
            else:
                clean.append(step.float().cpu())
    on_paths, predicted, subtracted = (
        torch.cat([chunk[step][column] for step in range(plan.steps) for chunk in chunks]) for column in range(3)
    )
    schedule = timesteps(plan.steps, len(host.alphas_cumprod))
    x, t = _renoised(predictor, torch.cat(clean), plan, seed)
    return {
        "x": torch.cat([on_paths, x]),
        "t": torch.cat([schedule.repeat_interleave(plan.paths), t]),
        "target": torch.cat([predicted, torch.zeros_like(x)]),
        "negative": torch.cat([subtracted, torch.zeros_like(x)]),
    }


def _renoised(predictor: Predictor, clean: Tensor, plan: PathPlan, seed: int) -> tuple[Tensor, Tensor]:
    """Finished latents with fresh noise, `[m, c, h, w]` fp16, at noise levels that are the same for every teacher, `[m]`."""
    alphas = predictor.host.alphas_cumprod
    levels = torch.Generator().manual_seed(plan.seed)
    t = torch.randint(0, len(alphas), (plan.renoised,), generator=levels)
    noise = torch.randn(plan.renoised, *clean.shape[1:], generator=torch.Generator().manual_seed(seed + _SEEDS // 2))
    signal = alphas[t][:, None, None, None]
    pictures = clean[torch.arange(plan.renoised) % len(clean)]
    return (signal.sqrt() * pictures + (1 - signal).sqrt() * noise).half(), t
