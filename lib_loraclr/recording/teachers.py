"""Teachers: which LoRAs are active on which prompts, and what the model then predicts along its denoising paths.

The LoRAs are their own teachers, no training picture is needed. A *subject* is taught on its own prompts. A *style* with
trigger words is taught on plain prompts and on every subject's prompts, its words added. A style without
trigger words changes everything it is applied to, so it is active in every other teacher too, also in the one
for prompts without triggers. Where there is no such style, that one is the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model import Conditioning, Factors, Host, free_on_card
from ..progress import Progress
from ..request import Concept, PromptOptions, RecordingOptions, concept_prompts, is_background
from .sampling import BATCH, Step, denoising_path, evaluated, initial_noise


@dataclass(frozen=True)
class Teacher:
    """Attributes:
    name: for progress and messages
    concept: whose retention is measured on these prompts; None where no trigger is
    active: the concepts that are active
    prompts: what is asked
    importance: how much it counts
    """

    name: str
    concept: int | None
    active: tuple[int, ...]
    prompts: tuple[str, ...]
    importance: float = 1.0

    @property
    def absent(self) -> tuple[int, ...]:
        """What is active when the concept is not there; retention 0 is this."""
        return tuple(i for i in self.active if i != self.concept)

    def rivals(self, subjects: Sequence[int]) -> list[tuple[int, ...]]:
        """What would be active if another subject were in this one's place; none where no subject is taught."""
        if self.concept not in subjects:
            return []
        return [tuple(sorted({*self.absent, j})) for j in subjects if j not in self.active]


def make_teachers(concepts: Sequence[Concept], prompts: PromptOptions) -> list[Teacher]:
    """The teachers of a merge, the one without triggers last.

    A single concept has nothing to be kept apart from: there the teacher without triggers is left out, so that the
    merge of one LoRA is that LoRA.
    """
    background = tuple(i for i, concept in enumerate(concepts) if is_background(concept))
    teachers = []
    for i, concept in enumerate(concepts):
        active = tuple(sorted({i, *background}))
        own = concept_prompts(concept, prompts)
        teachers.append(Teacher(concept.label, i, active, own, concept.importance))
        if concept.kind == "style" and concept.trigger:
            teachers += _style_on_subjects(i, concepts, active, prompts)
    if len(concepts) > 1:
        plain = tuple(prompts.with_quality(prompt) for prompt in prompts.plain)
        importance = sum(concept.importance for concept in concepts) / len(concepts)
        teachers.append(Teacher("prompts without triggers", None, background, plain, importance))
    return teachers


def _style_on_subjects(
    style: int, concepts: Sequence[Concept], active: tuple[int, ...], prompts: PromptOptions
) -> list[Teacher]:
    """The style with trigger words on each subject's first prompt: both active, the style's words added."""
    subjects = [(j, concept) for j, concept in enumerate(concepts) if concept.kind == "subject"]
    return [
        Teacher(
            f"{concepts[style].label} on {subject.label}",
            style,
            tuple(sorted({*active, j})),
            tuple(f"{prompt}, {concepts[style].trigger}" for prompt in concept_prompts(subject, prompts)[:2]),
            concepts[style].importance / len(subjects),
        )
        for j, subject in subjects
    ]


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


def spread(count: int, most: int) -> Tensor:
    """`min(count, most)` indices below `count`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


class Classroom:
    """A host, the concepts' deltas, and how paths are made: everything a teacher needs to predict."""

    def __init__(
        self,
        host: Host,
        deltas: Sequence[Mapping[str, Factors]],
        recording: RecordingOptions,
        *,
        negative_prompt: str,
        background: tuple[int, ...],
        memory: int,
        progress: Progress,
    ) -> None:
        """
        Args:
            deltas: per concept, its weight inside
            background: the concepts that are active whatever the prompt
            memory: bytes that may be taken
        """
        self.host, self.deltas, self.recording = host, deltas, recording
        self.negative_prompt, self.background = negative_prompt, background
        self.memory, self.progress = memory, progress
        self.size = (recording.height or host.default_size, recording.width or host.default_size)

    def activation_budget(self, reserved: int) -> int:
        """Bytes that activations may take: most of what is free on a graphics card, the memory budget in RAM.

        Args:
            reserved: bytes that will be taken on the card beside them
        """
        free = free_on_card(self.host.device)
        return self.memory if free is None else int(0.7 * (free - reserved))

    def together(self, active: Sequence[int]) -> dict[str, tuple[Factors, ...]]:
        """The deltas of the active concepts; `Host.apply` adds them."""
        together: dict[str, tuple[Factors, ...]] = {}
        for i in active:
            for key, factors in self.deltas[i].items():
                together[key] = (*together.get(key, ()), factors)
        return together

    @torch.no_grad()
    def encode(self, active: Sequence[int], prompts: Sequence[str]) -> Conditioning:
        with self.host.apply(self.together(active)):
            return self.host.encode(prompts)

    @torch.no_grad()
    def predict(self, active: Sequence[int], x: Tensor, t: Tensor, prompts: Sequence[str], note: str = "") -> Tensor:
        """Predictions with these concepts active, `[n, c, h, w]` fp16 on the CPU."""
        deltas, results = self.together(active), []
        with self.host.apply(deltas):
            for start in range(0, len(t), BATCH * 2):
                part = slice(start, start + BATCH * 2)
                conditioning = self.host.encode(list(prompts[part]))
                noisy = x[part].to(self.host.device).float()
                output = evaluated(self.host, noisy, t[part].to(self.host.device), conditioning)
                results.append(output.half().cpu())
                self.progress.advance(len(output), note)
        return torch.cat(results)

    def learn(
        self, teacher: Teacher, *, paths: int, steps: int, keep: int, seed: int, effects: int | None = None
    ) -> Examples:
        """Follow the teacher's own denoising paths and keep what it predicts on the way.

        Args:
            paths: how many; prompts are taken in turn
            steps: of each path
            keep: how many points of each path to keep, evenly spread over its steps
            seed: of the first path's noise; the following ones count up. The same for every concept, so that the
                order of the concepts changes nothing
            effects: at how many of the points to measure the concept's effect; None for all
        """
        prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(paths)]
        kept = set(spread(steps, keep).tolist())
        x, t, target, texts = [], [], [], []
        for start in range(0, paths, BATCH):
            chunk = prompts[start : start + BATCH]
            noise = initial_noise(self.host, range(seed + start, seed + start + len(chunk)), *self.size)
            conditioning = self.encode(teacher.active, chunk)
            negative = self.encode(teacher.active, [self.negative_prompt] * len(chunk))
            with self.host.apply(self.together(teacher.active)):
                path = denoising_path(
                    self.host, noise, conditioning, negative, steps=steps, guidance=self.recording.guidance
                )
                for number, step in enumerate(path):
                    if not isinstance(step, Step):
                        continue
                    self.progress.advance(2 * len(chunk), teacher.name)
                    if number in kept:
                        x.append(step.x.half().cpu())
                        t.append(step.t.cpu())
                        target.append(step.conditional.half().cpu())
                        texts += chunk
        x, t, target = torch.cat(x), torch.cat(t), torch.cat(target)
        effect = self._effect(teacher, x, t, target, texts, effects)
        negative_target = self.predict(self.background, x, t, [self.negative_prompt] * len(t), teacher.name)
        return Examples(teacher, tuple(texts), x, t, target, effect, negative_target)

    def _effect(self, teacher: Teacher, x: Tensor, t: Tensor, target: Tensor, texts: list[str], most: int | None):
        """`Examples.effect`, at `most` of the points; NaN at the others."""
        effect = torch.full((len(t),), torch.nan)
        if teacher.concept is not None:
            at = spread(len(t), len(t) if most is None else most)
            reference = self.predict(teacher.absent, x[at], t[at], [texts[i] for i in at], teacher.name)
            effect[at] = (target[at].float() - reference.float()).square().mean((1, 2, 3))
        return effect

    @staticmethod
    def evaluations(teacher: Teacher, *, paths: int, steps: int, keep: int, effects: int | None = None) -> int:
        """How many evaluations of one sample `learn` takes."""
        points = paths * min(keep, steps)
        measured = 0 if teacher.concept is None else points if effects is None else min(effects, points)
        return paths * 2 * steps + points + measured


def add_nearest_other(room: Classroom, examples: Sequence[Examples], subjects: Sequence[int]) -> list[Examples]:
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
        nearest = rivals[0] if len(rivals) == 1 else _nearest(room, own, rivals)
        other = room.predict(nearest, own.x, own.t, own.prompts, own.teacher.name)
        results.append(replace(own, other=other))
    return results


PILOT = 6


def _nearest(room: Classroom, own: Examples, rivals: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    few = own.select(spread(len(own), PILOT))
    distances = {}
    for rival in rivals:
        prediction = room.predict(rival, few.x, few.t, few.prompts, own.teacher.name)
        distances[rival] = float((prediction.float() - few.target.float()).square().mean())
    return min(rivals, key=lambda rival: distances[rival])
