"""One layer's merge as a least-squares problem: what goes in, what each concept does with it, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model import Factors, column_basis, concatenate, orthonormal_basis, zero
from .error_units import units


@dataclass(frozen=True)
class Recording:
    """Inputs of one layer, recorded while some concepts were active.

    Attributes:
        inputs: `[n, d_in]`
        active: the concepts that were active; the sum of their deltas is the target on these rows, no concept at all (the
            base model) means target 0
        importance: how much these rows count; `c` in docs/method.md
        rivals: the sets of concepts that must not be mistaken for the active ones; none where there is nothing to keep apart
        absent: those of the active ones that are also there where the recorded concept is not: styles without trigger words, or
            the subject that a style is recorded on; all of them, where no concept is recorded
    """

    inputs: Tensor
    active: tuple[int, ...]
    importance: float = 1.0
    rivals: tuple[tuple[int, ...], ...] = ()
    absent: tuple[int, ...] = ()

    @property
    def own(self) -> tuple[int, ...]:
        """Whose effect is recorded: what is active because of the concept."""
        return tuple(i for i in self.active if i not in self.absent)


@dataclass(frozen=True)
class LayerProblem:
    """All that a method sees of one layer, on one device and in one floating-point type.

    Attributes:
        key: layer key
        deltas: one per concept, its weight inside: up `[d_out, r_i]`, down `[r_i, d_in]`; None where a concept does not
            change this layer
        recordings: of its inputs; empty for methods that need none
        weight: the layer's own, `[d_out, d_in]`; for methods that ask for it
    """

    key: str
    deltas: tuple[Factors | None, ...]
    recordings: tuple[Recording, ...] = ()
    weight: Tensor | None = None

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

    def dense_deltas(self) -> Tensor:
        """Every concept's delta as a whole matrix, `[N, d_out, d_in]`; zero where it does not change the layer."""
        nothing = torch.zeros(self.present[0].shape, dtype=self.present[0].up.dtype, device=self.present[0].up.device)
        return torch.stack([nothing if delta is None else delta.dense() for delta in self.deltas])

    def column_space(self) -> Tensor:
        """Orthonormal basis of all that the concepts can do: `U = orth([B_1 … B_N])`, `[d_out, R]`.

        Each concept comes with a basis of its own, in which all directions are as long as each other: whether a LoRA keeps
        its scale in `up` or in `down`, and how strong it is beside the others, must not decide which directions count as zero.
        """
        return orthonormal_basis(torch.cat([column_basis(delta) for delta in self.present], dim=1))

    def units(self) -> list[float]:
        """What squared errors on each recording are measured in: `e_i = mean_rows ||X_i D_i^T||²` (`error_units`).

        Of a concept that is recorded beside a style without trigger words it is the concept's own effect alone: with the style's
        in it, a subject would count for less the more the style changes.
        """
        return units([self._effect(recording) for recording in self.recordings])

    def _effect(self, recording: Recording) -> float:
        """Mean squared size of what the recorded concept itself does on a recording's rows."""
        if not (recording.own and len(recording.inputs)):
            return 0.0
        target = self.target(recording.own)
        inside = recording.inputs @ target.down.mT
        return float(((inside @ (target.up.mT @ target.up)) * inside).sum().clamp_min(0)) / len(inside)

    def weights(self) -> list[float]:
        """Weight of one row's squared error, `c_i / (n_i e_i)`: recordings count by importance, not by their number of rows
        and not by the strength of what is recorded."""
        return [
            recording.importance / max(1, len(recording.inputs)) / unit
            for recording, unit in zip(self.recordings, self.units(), strict=True)
        ]

    def scaled_inputs(self) -> list[Tensor]:
        """The inputs of each recording, rows scaled by the root of their weight, `[n, d_in]` each: together the rows of
        `S = Σ c_i / (n_i e_i) X_i^T X_i`."""
        return [
            recording.inputs * weight**0.5 for recording, weight in zip(self.recordings, self.weights(), strict=True)
        ]

    def called_inputs(self) -> list[Tensor]:
        """Those of them on which a concept is active; what a merge does on rows of the base model is an error, not an effect."""
        pairs = zip(self.scaled_inputs(), self.recordings, strict=True)
        return [inputs for inputs, recording in pairs if recording.active]

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
        stacked = torch.cat([recording.inputs for recording in self.recordings])
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
