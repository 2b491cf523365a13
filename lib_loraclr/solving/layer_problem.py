"""One layer's merge as a least-squares problem: what goes in, what each concept does with it, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model import Factors, concatenate, orthonormal_basis, zero


@dataclass(frozen=True)
class Recording:
    """Inputs of one layer, recorded while some concepts were active.

    Attributes:
        inputs: `[n, d_in]`
        active: the concepts that were active; the sum of their deltas is the target on these rows, no concept at all (the
            base model) means target 0
        importance: how much these rows count; `c` in docs/method.md
        rivals: the sets of concepts that must not be mistaken for the active ones; none where there is nothing to keep apart
    """

    inputs: Tensor
    active: tuple[int, ...]
    importance: float = 1.0
    rivals: tuple[tuple[int, ...], ...] = ()

    @property
    def weight(self) -> float:
        """Weight of one row's squared error: recordings count by importance, not by their number of rows."""
        return self.importance / max(1, len(self.inputs))


@dataclass(frozen=True)
class LayerProblem:
    """All that a method sees of one layer, on one device and in one floating-point type.

    Attributes:
        key: layer key
        deltas: one per concept, its weight inside: up `[d_out, r_i]`, down `[r_i, d_in]`; None where a concept does not
            change this layer
        recordings: of its inputs; empty for methods that need none
    """

    key: str
    deltas: tuple[Factors | None, ...]
    recordings: tuple[Recording, ...] = ()

    @property
    def present(self) -> list[Factors]:
        """The deltas there are."""
        return [delta for delta in self.deltas if delta is not None]

    def target(self, active: Sequence[int]) -> Factors:
        """The delta that the active concepts have together, `[d_out, d_in]`."""
        deltas = [self.deltas[i] for i in active]
        deltas = [delta for delta in deltas if delta is not None]
        first = self.present[0]
        return concatenate(deltas) if deltas else zero(*first.shape, like=first.up)

    def column_space(self) -> Tensor:
        """Orthonormal basis of all that the concepts can do: `U = orth([B_1 … B_N])`, `[d_out, R]`."""
        return orthonormal_basis(torch.cat([delta.up for delta in self.present], dim=1))

    def stacked(self) -> Tensor:
        """All inputs, each row scaled by the root of its weight, `[sum n, d_in]`: the rows of `S = Σ c_i X_i^T X_i / n_i`."""
        return torch.cat([recording.inputs * recording.weight**0.5 for recording in self.recordings])

    def targets_in(self, basis: Tensor) -> list[Tensor]:
        """What each recording's concepts do on its rows, in coordinates of the column space: `X D^T U`, `[n, R]` each."""
        results = []
        for recording in self.recordings:
            target = self.target(recording.active)
            results.append((recording.inputs @ target.down.mT) @ (target.up.mT @ basis))
        return results

    def reduced(self, basis: Tensor) -> Reduced:
        """The same problem in coordinates of the column space, and of the space that the inputs span where rows are few.

        A change of the delta outside the inputs' span does nothing on them, so a search that follows gradients never leaves it.

        Args:
            basis: `U`, `[d_out, R]`, orthonormal
        """
        stacked = self.stacked()
        few = len(stacked) < stacked.shape[1]
        span = torch.linalg.qr(stacked.mT).Q.mT if few else None
        reduced = Reduced(self, span)
        deltas = [d and Factors(basis.mT @ d.up, reduced.inside(d.down)) for d in self.deltas]
        rows = [replace(recording, inputs=reduced.inside(recording.inputs)) for recording in self.recordings]
        return replace(reduced, problem=LayerProblem(self.key, tuple(deltas), tuple(rows)))


@dataclass(frozen=True)
class Reduced:
    """A problem in fewer coordinates.

    Attributes:
        problem: the problem, with `R` for `d_out`, and the number of rows for `d_in` where rows are fewer than columns
        span: orthonormal basis of the inputs' span, `[s, d_in]`; None where the columns were left as they were
    """

    problem: LayerProblem
    span: Tensor | None

    def inside(self, matrix: Tensor) -> Tensor:
        """`[…, d_in]` -> `[…, s]`; what is outside the span is lost."""
        return matrix if self.span is None else matrix @ self.span.mT

    def outside(self, matrix: Tensor) -> Tensor:
        """`[…, s]` -> `[…, d_in]`"""
        return matrix if self.span is None else matrix @ self.span
