"""What is run through the model while the inputs of its layers are recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..model import Host
from ..recording import Attempt, Examples, evaluated, spread
from .stage_plan import RECORDED_POINTS


def encoding(host: Host, prompts: Sequence[str]) -> Callable[[slice, Attempt], None]:
    """What runs some of these prompts through the text encoder(s), as they are then."""

    def run(part: slice, attempt: Attempt) -> None:
        with attempt(range(part.start, part.stop)):
            host.encode(prompts[part])

    return run


def denoising(host: Host, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Callable[[slice, Attempt], Tensor]:
    """What runs some of these points through the model, as it is then."""

    def run(part: slice, attempt: Attempt) -> Tensor:
        # the text encoders are recorded here too where a refined merge is cut
        with attempt(range(part.start, part.stop)):
            conditioning = host.encode(list(prompts[part]))
        noisy, times = x[part].to(host.device).float(), t[part].to(host.device)
        return evaluated(host, noisy, times, conditioning, attempt, part.start)

    return run


def recorded_points(examples: Examples) -> Examples:
    """Those of the points with the teacher's prompts whose layer inputs are recorded."""
    called = examples.called
    return called.select(spread(len(called), RECORDED_POINTS))
