"""The scenes of a refinement that the merge draws itself on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from ..model import Factors
from ..recording import Examples, Predictor, Rollout, Scene, ask_along, draw_paths, plan_rollouts, rollout_evaluations

#: steps of each path
STEPS = 8
#: how many pictures of three there are, for each of two: as rarely as they are learnt from
TRIPLES = 0.25
#: first seed of the pictures' noise, and how much lies between times and numbers of windows; no teacher's path begins with them
_SEEDS, _APART = 500_000, 10_000
#: share of the memory budget that the scenes may take: that of the rows of layers' inputs, which are gone by then
_ROOM = 0.5
#: bytes that a number of a latent takes: the paths, and of each scene its latents, target and rival, in half precision
_BYTES = 4 * 2
#: in the state of a refinement
_NAME = "paths after step {} of {} windows"


def pictures(subjects: int, each: int) -> dict[int, int]:
    """How many pictures are drawn each time, by the number of their windows.

    Args:
        subjects: that can stand beside each other
        each: pictures of two, for each subject
    """
    wanted = {2: each * subjects, 3: round(TRIPLES * each * subjects)}
    return {windows: count for windows, count in wanted.items() if windows <= subjects and count}


def evaluations(subjects: int, each: int) -> int:
    """How many samples of the native size that takes each time, at most.

    Args:
        subjects, each: as of `pictures`
    """
    return sum(count * rollout_evaluations(windows, STEPS) for windows, count in pictures(subjects, each).items())


def fitting(predictor: Predictor, subjects: int, each: int) -> int:
    """Pictures of two for each subject that the memory budget has room for."""
    host, (height, width) = predictor.host, predictor.size
    window = host.latent_channels * height * width // host.pixels_per_latent**2
    one = sum(count * windows * STEPS * window * _BYTES for windows, count in pictures(subjects, each).items())
    return min(each, int(each * _ROOM * predictor.memory / one)) if one else 0


class OwnScenes:
    """What the teachers say on the merge's own paths, drawn anew now and then."""

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Examples],
        scenes: Mapping[int, Sequence[Scene]],
        each: int,
        *,
        seed: int,
        after: Collection[int],
    ) -> None:
        """
        Args:
            examples: of all teachers
            scenes: that were recorded, by the number of their windows
            each: pictures of two, for each subject and each time; fewer where the memory budget has no room for them
            after: the numbers of the steps after which pictures are drawn
        """
        self._predictor, self._teachers = predictor, [own.teacher for own in examples]
        subjects = len({own.teacher.concept for own in examples if own.teacher.in_scenes})
        counts = pictures(subjects, fitting(predictor, subjects, each))
        self._planned: dict[tuple[int, int], list[Rollout]] = {
            (step, windows): plan_rollouts(
                scenes[windows], count, steps=STEPS, seed=seed + _SEEDS + _APART * (3 * time + windows)
            )
            for time, step in enumerate(sorted(after))
            for windows, count in counts.items()
            if windows in scenes
        }
        self._paths: dict[tuple[int, int], Tensor] = {}

    def draw(self, factors: Mapping[str, Factors], step: int) -> dict[int, list[Scene]]:
        """The scenes, by the number of their windows, of pictures that are drawn after a step; none where it is not time."""
        for at, planned in self._planned.items():
            if at[0] == step:
                self._paths[at] = draw_paths(self._predictor, factors, planned)
        return self._asked(step)

    def restore(self, kept: Mapping[str, Tensor]) -> dict[int, dict[int, list[Scene]]]:
        """What was drawn in a refinement that goes on: after which steps, and the scenes as `draw` had them."""
        self._paths = {at: kept[name] for at in self._planned if (name := _NAME.format(*at)) in kept}
        return {step: self._asked(step) for step in sorted({step for step, _ in self._paths})}

    def state(self) -> dict[str, Tensor]:
        """What is needed to have the same scenes again: where the merge came by; the teachers can be asked anew."""
        return {_NAME.format(*at): paths for at, paths in self._paths.items()}

    def _asked(self, step: int) -> dict[int, list[Scene]]:
        return {
            at[1]: ask_along(self._predictor, self._planned[at], paths, self._teachers)
            for at, paths in self._paths.items()
            if at[0] == step
        }
