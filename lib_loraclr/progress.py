"""Progress and interruption, as the core reports them; every door shows them in its own way."""

from __future__ import annotations

from .errors import Interrupted


class Progress:
    """Silent progress, and the base of those that show it.

    A job is a sequence of stages, each of a known number of units; `advance` is called at least once per evaluation of the
    model, which is as long as a user waits for an interrupt to be heard.
    """

    def start(self, stage: str, total: int) -> None:
        """A stage begins that takes `total` units."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` says at what (a concept, a layer).

        Raises:
            Interrupted: the user asked to stop
        """
        if self.interrupted():
            raise Interrupted

    def log(self, line: str) -> None:
        """One line about how the merge is going."""

    def interrupted(self) -> bool:
        """Whether the user asked to stop."""
        return False
