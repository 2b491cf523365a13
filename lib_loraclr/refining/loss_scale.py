"""Keeps small gradients from vanishing in half precision, on whatever device."""

from __future__ import annotations

from torch import Tensor

#: at first, and by how much less after an overflow; a refinement is too short to grow again
_FIRST, _BACKOFF = 2.0**14, 0.25


class LossScale:
    """What a loss is multiplied with before its backward pass, and its gradients divided by after it.

    Gradients of a model in fp16 fall below its smallest numbers unless the loss is scaled (Micikevicius et al., arXiv
    1710.03740). torch has this for some devices only, by its release; here it is the same on all of them.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled, self.value = enabled, _FIRST if enabled else 1.0

    def settle(self, gradients: Tensor) -> bool:
        """Divide gradients by the scale, in place.

        Returns:
            False where one of them is not finite: the step must be left out, and the next one is scaled by less
        """
        if not self.enabled:
            return True
        if not bool(gradients.isfinite().all()):
            self.value *= _BACKOFF
            return False
        gradients.div_(self.value)
        return True
