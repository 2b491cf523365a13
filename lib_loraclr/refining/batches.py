"""What is compared in each step of the refinement: single concepts, styles with and without their words, and scenes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor

from ..recording import Examples, Scene, Teacher, make_scenes
from ..solving import LEAST_CONCEPTS, RefinementOptions, Terms, output_terms, style_terms
from .scales import NoiseLevels, scales, scales_with_subjects

#: how much an error in a scene counts, beside one on a single concept
SCENE_WEIGHT = 0.5
#: every so many steps the scenes have three windows instead of two; more often, pictures with two suffer (docs/method.md)
TRIPLE_EVERY = 8
#: at how many points a style that is called by words is compared, for each of a concept that is not: its words are to decide
#: about a picture, which they do not with its own LoRA
STYLE_TURNS = 3
#: once there are scenes that the merge drew itself, their share of what is drawn
OWN_SHARE = 0.5


#: what the model predicts for prompts at noisy latents `[n, c, h, w]` and timesteps `[n]`
Predict = Callable[[Sequence[str], Tensor, Tensor], Tensor]


_Own = TypeVar("_Own", bound="_Rows")


class _Rows:
    """Rows in columns: the fields of a dataclass, `b` values each."""

    def __len__(self) -> int:
        return len(self.t)

    def share(self: _Own, rank: int, count: int) -> _Own:
        """Every `count`-th of its rows, from `rank` on: what one of so many processes compares; perhaps none."""
        return self._cut(slice(rank, None, count))

    def parts(self: _Own, size: int) -> Iterator[_Own]:
        """The batch in pieces of at most so many rows."""
        for start in range(0, len(self), size):
            yield self._cut(slice(start, start + size))

    def _cut(self: _Own, rows: slice) -> _Own:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Batch(_Rows):
    """`b` predictions to compare, all of one size.

    Attributes:
        prompts: what is asked, `b`
        x: noisy latents `[b, c, h, w]`
        t: timesteps `[b]`
        target: what is to be predicted `[b, c, h, w]`
        scale: what squared errors are divided by, `[b, windows]`
        other: what another concept would predict `[b, c, h, w]`
        apart: in which windows the other is one to stay away from, `[b, windows]`
        importance: `[b]`
    """

    prompts: tuple[str, ...]
    x: Tensor
    t: Tensor
    target: Tensor
    scale: Tensor
    other: Tensor
    apart: Tensor
    importance: Tensor

    @property
    def windows(self) -> int:
        """How many native pictures stand side by side."""
        return self.scale.shape[1]

    def weight(self, size: int) -> float:
        """How much it counts in a step that compares so many single concepts: as much as all of those."""
        return 1.0

    def compare(self, predict: Predict, terms: Terms) -> tuple[Tensor, Tensor]:
        """The weighted objective, and of it the contrastive term without its weight, `[b]` each (`solving.output_terms`)."""
        prediction = predict(self.prompts, self.x, self.t)
        columns = (self.target, self.scale, self.other, self.apart)
        positive, negative = output_terms(prediction, *(column.to(prediction.device) for column in columns))
        return terms.positive * positive + terms.contrast * negative, negative


@dataclass(frozen=True)
class StyleBatch(_Rows):
    """`b` points at which a style with trigger words is called, and is not: two predictions each.

    Attributes:
        prompts: with the style's words, and the same without them, `b` times two
        x: noisy latents `[b, c, h, w]`
        t: timesteps `[b]`
        target: what is to be predicted where it is called, `[b, c, h, w]`
        other: and where it is not
        scale: what squared errors are divided by, `[b]`
        style_scale: and those in what the words change, `[b]`
        importance: `[b]`
    """

    prompts: tuple[tuple[str, str], ...]
    x: Tensor
    t: Tensor
    target: Tensor
    other: Tensor
    scale: Tensor
    style_scale: Tensor
    importance: Tensor

    @property
    def windows(self) -> int:
        """How many native pictures a row is as much work as."""
        return 2

    def weight(self, size: int) -> float:
        """As of `Batch`, but a point as much as a single concept: with many concepts there are fewer of them in a step."""
        return len(self) / size

    def compare(self, predict: Predict, terms: Terms) -> tuple[Tensor, Tensor]:
        """As of `Batch`; nothing is contrastive here (`solving.style_terms`)."""
        called, uncalled = zip(*self.prompts, strict=True)
        prediction = predict((*called, *uncalled), torch.cat([self.x, self.x]), torch.cat([self.t, self.t]))
        columns = (self.target, self.other, self.scale, self.style_scale)
        positive, words = style_terms(*prediction.chunk(2), *(column.to(prediction.device) for column in columns))
        return terms.positive * positive + terms.style * words, torch.zeros_like(words)


#: a row of a batch of either kind, in the order of its fields
_Row = tuple[str | tuple[str, str], Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def spread_levels(t: Tensor, generator: torch.Generator) -> list[int]:
    """A random order of points in which every stretch has all noise levels in proportion: a step's gradient then differs less
    from that of all points (stratified sampling).

    Args:
        t: timesteps `[n]`
    """
    place = torch.empty(len(t))
    for level in t.unique():
        at = (t == level).nonzero()[:, 0]
        at = at[torch.randperm(len(at), generator=generator)]
        place[at] = (torch.arange(len(at)) + torch.rand(len(at), generator=generator)) / len(at)
    return place.argsort().tolist()


def _turns(concepts: Sequence[int | None], new: Collection[int]) -> list[int | None]:
    """Concepts in turn; new ones in every second turn, where those are more than they have anyway."""
    added, known = [own for own in concepts if own in new], [own for own in concepts if own not in new]
    if not 0 < len(added) < len(known):
        return list(concepts)
    return [own for pair in zip(known * len(added), cycle(added)) for own in pair]


class _Turns:
    """Draws points of examples: concepts in turn, teachers of a concept in turn, points of a teacher without replacement.

    In turn by concepts and not by teachers: a style teaches on every subject, and would have most of the draws.
    """

    def __init__(self, examples: Sequence[Examples], generator: torch.Generator, new: Collection[int]) -> None:
        """
        Args:
            new: concepts that have every second turn, where those are more than without it
        """
        groups: dict[int | None, list[Examples]] = {}
        for own in examples:
            groups.setdefault(own.teacher.concept, []).append(own)
        self._turns = cycle(_turns([*groups], new))
        self._generator = generator
        self._queues: dict[str, list[int]] = {}
        self._teachers = {concept: cycle(own) for concept, own in groups.items()}

    def next(self) -> tuple[Examples, int]:
        own = next(self._teachers[next(self._turns)])
        queue = self._queues.setdefault(own.teacher.name, [])
        if not queue:
            queue += spread_levels(own.t, self._generator)
        return own, queue.pop()


class _Shuffled:
    """Draws scenes without replacement until all were had."""

    def __init__(self, scenes: Sequence[Scene], generator: torch.Generator) -> None:
        self.scenes, self._generator, self._queue = scenes, generator, []
        self._t = torch.stack([scene.t for scene in scenes])

    def next(self) -> Scene:
        if not self._queue:
            self._queue = spread_levels(self._t, self._generator)
        return self.scenes[self._queue.pop()]


class _Scenes:
    """Draws scenes of one width: those with a new concept in every second turn, where there are both."""

    def __init__(self, scenes: Sequence[Scene], generator: torch.Generator, new: Collection[int]) -> None:
        self.scenes = scenes
        added = [scene for scene in scenes if not set(new).isdisjoint(scene.subjects)]
        known = [scene for scene in scenes if set(new).isdisjoint(scene.subjects)]
        parts = (added, known) if 0 < len(added) < len(known) else (scenes,)
        self._turns = cycle([_Shuffled(part, generator) for part in parts])

    def next(self) -> Scene:
        return next(self._turns).next()


class Sampler:
    """Draws what each step compares."""

    def __init__(self, examples: Sequence[Examples], options: RefinementOptions, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # of a path of few points the negative prompt may be asked at all
        styles = [own for own in examples if own.teacher.by_words and own.has_other.any()]
        others = [own for own in examples if not own.teacher.by_words]
        self._options, self._singles = options, _Turns(others, generator, options.new)
        self._styles = _Turns(styles, generator, options.new) if styles else None
        self._style_rows = style_rows([own.teacher for own in examples], options.batch_size)
        widths = (2, 3) if options.scene_rows else ()
        self._scenes = {
            n: _Scenes(scenes, generator, options.new) for n in widths if (scenes := make_scenes(examples, windows=n))
        }
        self._own: dict[int, _Scenes] = {}
        self._coming: list[tuple[int, Mapping[int, Sequence[Scene]]]] = []
        self._own_generator = torch.Generator().manual_seed(seed + 1)
        self._scales, self._level = scales(examples), NoiseLevels.fit(examples)
        self._scales_with_subjects = scales_with_subjects(examples)
        self._step = 0

    @property
    def scenes(self) -> dict[int, Sequence[Scene]]:
        """Those that were recorded, by the number of their windows."""
        return {windows: shuffled.scenes for windows, shuffled in self._scenes.items()}

    def add(self, scenes: Mapping[int, Sequence[Scene]], *, after: int) -> None:
        """Later on `OWN_SHARE` of the scenes of a width are such ones, in place of those that were added before.

        Args:
            scenes: on paths of the merge itself, by the number of their windows; none: nothing changes
            after: the number of the last step without them
        """
        if scenes:
            self._coming.append((after, scenes))

    def draw(self) -> list[Batch | StyleBatch]:
        """The batches of the next step: single concepts, and styles with trigger words and scenes where there are some."""
        self._step += 1
        while self._coming and self._coming[0][0] < self._step:
            _, scenes = self._coming.pop(0)
            self._own = {
                windows: _Scenes(own, self._own_generator, self._options.new) for windows, own in scenes.items()
            }
        batches = [self.singles(self._options.batch_size)]
        if self._styles:
            rows = [self._styled(*self._next_called()) for _ in range(self._style_rows)]
            batches.append(StyleBatch(*_stacked(rows)))
        if self._scenes:
            wide = 3 if 3 in self._scenes and self._step % TRIPLE_EVERY == 0 else min(self._scenes)
            recorded, rows = self._scenes[wide], self._options.scene_rows
            drawn = self._own.get(wide)
            own = round(OWN_SHARE * rows) if drawn else 0
            scenes = [*(drawn.next() for _ in range(own)), *(recorded.next() for _ in range(rows - own))]
            batches.append(Batch(*_stacked([self._scene(scene) for scene in scenes])))
        return batches

    def singles(self, size: int) -> Batch:
        """So many predictions of single concepts."""
        return Batch(*_stacked([self._single(*self._singles.next()) for _ in range(size)]))

    def _single(self, own: Examples, k: int) -> _Row:
        target = own.target[k].float()
        # In scenes the contrast says more, who stands where; on singles besides, it had one of two drawn twice more often.
        has = not self._scenes and own.other is not None and bool(own.has_other[k])
        other = own.other[k].float() if has else target
        scale = torch.tensor([self._scales[own.teacher.name] * self._level(own.t[k])])
        there = torch.tensor([has])
        return own.prompts[k], own.x[k].float(), own.t[k], target, scale, other, there, _importance(own)

    def _next_called(self) -> tuple[Examples, int]:
        """The next point at which a style is called, and not the negative prompt asked."""
        while True:
            own, k = self._styles.next()
            if own.has_other[k]:
                return own, k

    def _styled(self, own: Examples, k: int) -> _Row:
        prompts = own.prompts[k], own.teacher.prompt_without_style(own.slots[k])
        name, level = own.teacher.name, self._level(own.t[k])
        scale, style = (torch.tensor(of[name] * level) for of in (self._scales_with_subjects, self._scales))
        target, other = own.target[k].float(), own.other[k].float()
        return prompts, own.x[k].float(), own.t[k], target, other, scale, style, _importance(own)

    def _scene(self, scene: Scene) -> _Row:
        level = self._level(scene.t) / SCENE_WEIGHT
        scale = torch.tensor([self._scales[own.teacher.name] * level for own, _ in scene.points])
        importance = torch.stack([_importance(own) for own, _ in scene.points]).mean()
        target, (other, there) = scene.beside("target").float(), scene.rivals()
        return scene.prompt, scene.beside("x").float(), scene.t, target, scale, other.float(), there, importance


def style_rows(teachers: Sequence[Teacher], size: int) -> int:
    """At how many points a step compares styles that are called by words; 0 where there are none.

    Args:
        size: predictions of single concepts in a step
    """
    concepts = {teacher.concept for teacher in teachers} - {None}
    styles = {teacher.concept for teacher in teachers if teacher.by_words}
    rows = STYLE_TURNS * size * len(styles) / max(LEAST_CONCEPTS, len(concepts))
    return max(1, round(rows)) if styles else 0


def _importance(own: Examples) -> Tensor:
    return torch.tensor(own.teacher.importance)


def _stacked(rows: Sequence[_Row]) -> tuple[tuple, ...]:
    """The rows as columns: the prompts, and a tensor for each of the others."""
    prompts, *columns = zip(*rows, strict=True)
    return prompts, *(torch.stack(column) for column in columns)
