"""Scenes that the merge draws itself, and what the teachers say where it comes by.

Recorded scenes are what pictures look like on the way when all goes well; nothing in them says what to do about a window that
began as a mixture. So the merge draws some by what it has learnt so far, and the teachers are asked on its own paths, each in its
window (imitation on the learner's own states: DAgger, Ross et al., arXiv 1011.0686; "on-policy" distillation).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Factors
from .examples import ask_examples
from .predictor import Predictor
from .sampling import BATCH, Step, denoising_path, initial_noise, timesteps
from .scenes import Scene
from .teachers import Teacher


@dataclass(frozen=True)
class Rollout:
    """A picture that the merge is to draw.

    Attributes:
        prompt: what it is drawn by
        asked: for each step of its path, a scene of the same subjects in the same order, in whose words is asked there
        seed: of its noise
    """

    prompt: str
    asked: tuple[Scene, ...]
    seed: int

    @property
    def windows(self) -> int:
        """How many native pictures stand side by side."""
        return len(self.asked[0].points)


def rollout_evaluations(windows: int, steps: int) -> int:
    """How many samples of the native size a picture takes at most: to draw it with guidance, and to ask the teacher and the
    partner of every window on its path."""
    return (2 + 2) * windows * steps


def plan_rollouts(scenes: Sequence[Scene], count: int, *, steps: int, seed: int) -> list[Rollout]:
    """Pictures of the same subjects as recorded scenes of one width.

    Every row of subjects has its turn before one has a second, and subjects that were drawn less come first.

    Args:
        count: how many pictures
        steps: of each path
        seed: of what is drawn by lot, and of the first picture's noise
    """
    rows: dict[tuple[int, ...], list[Scene]] = {}
    for scene in scenes:
        rows.setdefault(scene.subjects, []).append(scene)
    # a picture is drawn by what calls its subjects, and asked about by the negative prompt too
    called = {row: prompts for row, own in rows.items() if (prompts := [s.prompt for s in own if not s.negative])}
    drawn = random.Random(f"{seed} rollouts")
    order = drawn.sample(sorted(called), len(called))
    turns, met = Counter(), Counter()
    rollouts = []
    for k in range(count if order else 0):
        row = min(order, key=lambda row: (turns[row], sum(met[concept] for concept in row)))
        turns[row] += 1
        met.update(row)
        asked = tuple(drawn.choice(rows[row]) for _ in range(steps))
        rollouts.append(Rollout(drawn.choice(called[row]), asked, seed + k))
    return rollouts


def draw_paths(predictor: Predictor, factors: Mapping[str, Factors], rollouts: Sequence[Rollout]) -> Tensor:
    """Where the merge comes by as it draws pictures of one width, `[pictures, steps, c, h, windows * w]` fp16.

    Args:
        factors: of the merge as it is
    """
    fixed = {key: Factors(f.up.detach(), f.down.detach()) for key, f in factors.items()}
    parts = _parts(rollouts)
    return torch.cat(
        predictor.processes.each(
            len(parts), lambda k: _path(predictor, fixed, parts[k]), lambda k: predictor.progress.found(0)
        )
    )


def ask_along(
    predictor: Predictor, rollouts: Sequence[Rollout], paths: Tensor, teachers: Sequence[Teacher]
) -> list[Scene]:
    """What the teachers say where the merge came by: a scene for every step of every picture.

    Args:
        paths: of the pictures, from `draw_paths`
        teachers: of the merge, those of the pictures' subjects among them
    """
    parts = _parts(rollouts)
    found = predictor.processes.each(
        len(parts),
        lambda k: _asked_along(predictor, parts[k], paths[BATCH * k : BATCH * (k + 1)], teachers),
        lambda k: predictor.progress.found(0),
    )
    return [scene for part in found for scene in part]


def _parts(rollouts: Sequence[Rollout]) -> list[Sequence[Rollout]]:
    """So many as the model is asked for at a time."""
    return [rollouts[start : start + BATCH] for start in range(0, len(rollouts), BATCH)]


@torch.no_grad()
def _path(predictor: Predictor, factors: Mapping[str, Factors], rollouts: Sequence[Rollout]) -> Tensor:
    """Of pictures that are drawn at once."""
    host, (height, width) = predictor.host, predictor.size
    noise = initial_noise(host, [own.seed for own in rollouts], height, width * rollouts[0].windows)
    passed = []
    with host.apply(factors):
        conditioning = host.encode([own.prompt for own in rollouts])
        negative = host.encode([predictor.negative_prompt] * len(rollouts))
        steps, guidance = len(rollouts[0].asked), predictor.recording.guidance
        for step in denoising_path(host, noise, conditioning, negative, steps=steps, guidance=guidance):
            predictor.progress.advance(0, "drawing scenes")
            if isinstance(step, Step):
                passed.append(step.x.half().cpu())
    return torch.stack(passed, dim=1)


def _asked_along(
    predictor: Predictor, rollouts: Sequence[Rollout], paths: Tensor, teachers: Sequence[Teacher]
) -> list[Scene]:
    """What the teachers say at every step, each of all that its windows came by at once.

    Args:
        paths: of these pictures
    """
    windows, steps = rollouts[0].windows, paths.shape[1]
    schedule = timesteps(steps, len(predictor.host.alphas_cumprod))
    # window, picture and step of every point that a concept is asked at
    places: dict[int, list[tuple[int, int, int]]] = {}
    for picture, own in enumerate(rollouts):
        for window, concept in enumerate(own.asked[0].subjects):
            places.setdefault(concept, []).extend((window, picture, step) for step in range(steps))
    cut = paths.unflatten(-1, (windows, -1))
    points = {}
    for concept, mine in sorted(places.items()):
        slots = []
        for window, picture, step in mine:
            examples, k = rollouts[picture].asked[step].points[window]
            slots.append(examples.slots[k])
        x = torch.stack([cut[picture, step, ..., window, :] for window, picture, step in mine])
        t = schedule[[step for _, _, step in mine]]
        [teacher] = [own for own in teachers if own.concept == concept and own.in_scenes]
        answered = ask_examples(predictor, teachers, teacher, slots, x, t)
        points |= {place: (answered, k) for k, place in enumerate(mine)}
    return [
        Scene(tuple(points[window, picture, step] for window in range(windows)))
        for picture in range(len(rollouts))
        for step in range(steps)
    ]
