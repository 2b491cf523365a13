"""The scenes of a refinement that the merge draws itself, in the middle of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..model import Factors
from ..recording import Examples, Predictor, Rollout, Scene, ask_along, draw_paths, plan_rollouts, rollout_evaluations

#: steps of each path
STEPS = 8
#: how many pictures of three there are, for each of two: as rarely as they are learnt from
TRIPLES = 0.25
#: first seed of the pictures' noise, and by how much more it is for each window; no path of a teacher begins with them
_SEEDS, _APART = 500_000, 10_000
#: share of the memory budget that the scenes may take: that of the rows of layers' inputs, which are gone by then
_ROOM = 0.5
#: bytes that a number of a latent takes: the paths, and of each scene its latents, target and rival, in half precision
_BYTES = 4 * 2
#: in the state of a refinement
_NAME = "paths of {} windows"


def pictures(subjects: int, each: int) -> dict[int, int]:
    """How many pictures are drawn, by the number of their windows.

    Args:
        subjects: that can stand beside each other
        each: pictures of two, for each subject
    """
    wanted = {2: each * subjects, 3: round(TRIPLES * each * subjects)}
    return {windows: count for windows, count in wanted.items() if windows <= subjects and count}


def evaluations(subjects: int, each: int) -> int:
    """How many samples of the native size that takes at most.

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
    """What the teachers say on the merge's own paths; nothing before it is drawn.

    Attributes:
        after: the number of the step after which it is drawn
    """

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Examples],
        scenes: Mapping[int, Sequence[Scene]],
        each: int,
        *,
        seed: int,
        after: int,
    ) -> None:
        """
        Args:
            examples: of all teachers
            scenes: that were recorded, by the number of their windows
            each: pictures of two, for each subject; fewer where the memory budget has no room for them
        """
        self.after, self._predictor, self._teachers = after, predictor, [own.teacher for own in examples]
        subjects = len({own.teacher.concept for own in examples if own.teacher.in_scenes})
        each = fitting(predictor, subjects, each)
        self._planned: dict[int, list[Rollout]] = {
            windows: plan_rollouts(scenes[windows], count, steps=STEPS, seed=seed + _SEEDS + windows * _APART)
            for windows, count in pictures(subjects, each).items()
            if windows in scenes
        }
        self._paths: dict[int, Tensor] = {}

    def draw(self, factors: Mapping[str, Factors]) -> dict[int, list[Scene]]:
        """The scenes, by the number of their windows, of pictures that are drawn now."""
        self._paths = {
            windows: draw_paths(self._predictor, factors, planned) for windows, planned in self._planned.items()
        }
        return self._asked()

    def restore(self, kept: Mapping[str, Tensor]) -> dict[int, list[Scene]]:
        """The scenes of a refinement that had come so far; none where it had not."""
        names = {windows: _NAME.format(windows) for windows in self._planned}
        self._paths = {windows: kept[name] for windows, name in names.items() if name in kept}
        return self._asked()

    def state(self) -> dict[str, Tensor]:
        """What is needed to have the same scenes again: where the merge came by; the teachers can be asked anew."""
        return {_NAME.format(windows): paths for windows, paths in self._paths.items()}

    def _asked(self) -> dict[int, list[Scene]]:
        return {
            windows: ask_along(self._predictor, self._planned[windows], paths, self._teachers)
            for windows, paths in self._paths.items()
        }
