"""The contrastive objective of LoRACLR (arXiv 2412.09622, eq. 3 to 6), scale-free, at a layer and at the model's output.

The paper's distances are norms of whole flattened tensors, 40 to 1400 in practice, so that its margin of 0.5 never acts. Here
every distance is relative: the positive one to the size of the concept's own effect, the negative one to the distance
between the two concepts' effects, so that a margin of 1 means "as far from the other concept as the concept itself is".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .layer_problem import LayerProblem, Recording

#: as how many concepts two are counted by what grows with their number: who stands where, and what a style's words change, has to
#: be learnt of two as of more
LEAST_CONCEPTS = 3
#: rivals that a recording's hinge looks at, the nearest ones: it is about the nearest of all, and to look at all of them on every
#: row takes time that grows with the square of their number and more
MOST_RIVALS = 4
#: rows of a recording by which that is told, about
_TELLING_ROWS = 16


@dataclass(frozen=True)
class Terms:
    """Weights of the terms.

    Attributes:
        positive: weight of the distance to the concept's own effect
        negative: weight of the hinge on the distance to the nearest other concept's effect, in each layer
        margin: `m` of that hinge
        delta: `λ_delta`, weight of the relative distance from the start
        contrast: weight of the direction towards another concept, at the output
        style: weight of what a style's words change, at the output
    """

    positive: float = 1.0
    negative: float = 0.1
    margin: float = 1.0
    delta: float = 0.001
    contrast: float = 0.5
    style: float = 1.0


@dataclass(frozen=True)
class RefinementOptions:
    """What to do at the model's output.

    Attributes:
        terms: of the objective
        steps: at most
        batch_size: predictions of single concepts that are compared in each step
        scene_rows: predictions of scenes, likewise; 0 for none
        learning_rate: Muon's, at its highest
        rollouts: pictures of two that the merge draws itself, for each concept; 0 for none
        new: the numbers of the concepts that are added to a finished merge, and have most to learn; none where all are
    """

    terms: Terms
    steps: int
    batch_size: int
    scene_rows: int
    learning_rate: float
    rollouts: int = 0
    new: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Group:
    """One recording in coordinates of the column space.

    Attributes:
        inputs: `X`, `[n, d_in]`
        target: `T_ii`, `[n, R]`
        others: `T_ij` of every rival `j` that it looks at, `[N', n, R]`
        distances: `||T_ii - T_ij||` per row, `[N', n]`
        share: weight of one row in the sum, importance included
        energy: `e_i`, what squared errors are measured in (`LayerProblem.units`)
    """

    inputs: Tensor
    target: Tensor
    others: Tensor
    distances: Tensor
    share: float
    energy: float


class LayerObjective:
    """The objective of one layer as a function of `M`, where `ΔW = U M`; `M` is `[R, d_in]`.

    ```
    L(M) = Σ_i c_i mean_rows [ positive ||P - T_ii||² / e_i + negative max(0, m - min_j ||P - T_ij|| / ||T_ii - T_ij||)² ]
           + λ_delta ||M - M_0||² / ||M_0||² ,      P = X_i M^T
    ```

    Distances in coordinates are those at the layer's output, since `U` is orthonormal and spans all targets.
    `e_i` is the concept's own effect in the layer (`LayerProblem.units`). Of many rivals `j` are those `MOST_RIVALS` that the
    start comes nearest to.
    """

    def __init__(
        self, problem: LayerProblem, basis: Tensor, start: Tensor, terms: Terms, *, start_energy: Tensor | None = None
    ) -> None:
        """
        Args:
            basis: `U`, `[d_out, R]`
            start: `M_0`, `[R, d_in]`
            start_energy: `||M_0||²`, `[]`, where `start` holds only a part of it (`LayerProblem.reduced`)
        """
        self.start, self.terms = start, terms
        energy = start.square().sum() if start_energy is None else start_energy
        self._start_energy = max(float(energy), torch.finfo(start.dtype).tiny)
        self._groups = _groups(problem, basis, start, terms.margin)

    def __call__(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Value `[]` and gradient `[R, d_in]` at `point`."""
        terms = self.terms
        change = point - self.start
        value = terms.delta * change.square().sum() / self._start_energy
        gradient = 2 * terms.delta / self._start_energy * change
        for group in self._groups:
            output = group.inputs @ point.mT
            residual = output - group.target
            value = value + terms.positive * group.share / group.energy * residual.square().sum()
            slope = 2 * terms.positive * group.share / group.energy * residual
            if terms.negative and len(group.others):
                hinge, push, _ = _hinge(output, group, terms.margin)
                value = value + terms.negative * group.share * hinge.square().sum()
                slope = slope + 2 * terms.negative * group.share * hinge[:, None] * push
            gradient = gradient + slope.mT @ group.inputs
        return value, gradient

    def active_share(self, point: Tensor) -> float:
        """Share of rows on which the hinge acts."""
        active, total = 0, 0
        for group in self._groups:
            if len(group.others):
                hinge, _, _ = _hinge(group.inputs @ point.mT, group, self.terms.margin)
                active, total = active + int((hinge > 0).sum()), total + len(hinge)
        return active / total if total else 0.0


def _groups(problem: LayerProblem, basis: Tensor, start: Tensor, margin: float) -> list[_Group]:
    total = sum(recording.importance for recording in problem.recordings) or 1.0
    targets = problem.targets_in(basis)
    # a concept that does not change this layer is a rival too: its effect here is none
    rivals = {rival: problem.target(rival) for recording in problem.recordings for rival in recording.rivals}
    sides = {rival: effect.up.mT @ basis for rival, effect in rivals.items()}

    def effects(inputs: Tensor, of: tuple[tuple[int, ...], ...]) -> Tensor:
        """`[N', n, R]`"""
        each = [(inputs @ rivals[rival].down.mT) @ sides[rival] for rival in of]
        return torch.stack(each) if each else inputs.new_zeros(0, len(inputs), basis.shape[1])

    groups = []
    for recording, target, unit in zip(problem.recordings, targets, problem.units(), strict=True):
        others = effects(recording.inputs, _nearest(recording, target, start, margin, effects))
        share = recording.importance / max(1, len(recording.inputs)) / total
        groups.append(_Group(recording.inputs, target, others, (others - target).norm(dim=2), share, unit))
    return groups


def _nearest(
    recording: Recording,
    target: Tensor,
    start: Tensor,
    margin: float,
    effects: Callable[[Tensor, tuple[tuple[int, ...], ...]], Tensor],
) -> tuple[tuple[int, ...], ...]:
    """The rivals that the start comes nearest to, on some of the rows."""
    if len(recording.rivals) <= MOST_RIVALS:
        return recording.rivals
    rows = slice(None, None, max(1, len(recording.inputs) // _TELLING_ROWS))
    inputs, target = recording.inputs[rows], target[rows]
    others = effects(inputs, recording.rivals)
    lengths, distances = (inputs @ start.mT - others).norm(dim=2), (target - others).norm(dim=2)
    # a rival far beyond the margin on some rows, or that does the same there, is no farther than one that never matters
    near = _relative(lengths, distances, target).clamp(max=2 * margin).mean(1).argsort(stable=True)[:MOST_RIVALS]
    return tuple(recording.rivals[k] for k in sorted(near.tolist()))


def _relative(lengths: Tensor, distances: Tensor, target: Tensor) -> Tensor:
    """Distances from rivals in units of the concept's own from them, `[N', n]`; infinite where the two do the same."""
    apart = distances > torch.finfo(target.dtype).eps * (1 + target.norm(dim=1))
    return torch.where(apart, lengths / distances.where(apart, torch.ones_like(lengths)), torch.inf)


def _hinge(output: Tensor, group: _Group, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """The hinge of every row `[n]`, its derivative by the output `[n, R]`, and the relative distances `[N', n]`.

    Where two concepts do the same (`||T_ii - T_ij|| = 0`) there is nothing to keep apart, and the hinge is off. At distance 0
    the norm has no derivative; 0 is used, an element of its subdifferential.
    """
    offsets = output - group.others
    lengths = offsets.norm(dim=2)
    relative = _relative(lengths, group.distances, group.target)
    nearest, index = relative.min(dim=0)
    hinge = (margin - nearest).clamp_min(0)
    row = torch.arange(len(output), device=output.device)
    length, distance = lengths[index, row], group.distances[index, row]
    scale = torch.where((length > 0) & (hinge > 0), length * distance, torch.inf)
    return hinge, -offsets[index, row] / scale[:, None], relative


def output_terms(
    prediction: Tensor, target: Tensor, scale: Tensor, other: Tensor, apart: Tensor
) -> tuple[Tensor, Tensor]:
    """The objective's two terms at the model's output, per sample; differentiable by `prediction`.

    On each window, `positive` is the squared error in the concept's own unit, and `c = <ε_m - ε_i, d> / <d, d>` with
    `d = ε_i - ε_j` is how far the prediction has gone from the concept's (0) to another's (-1). The paper's negative term asks
    for a distance from the other; its direction says the same without a margin, and acts wherever concepts are mixed.

    Args:
        prediction: `ε_m`, `[b, c, h, w]`; `windows` concepts side by side
        target: `ε_i`, what the concepts' own LoRAs predict, `[b, c, h, w]`
        scale: what a squared error is divided by, `[b, windows]`
        other: `ε_j`, what other concepts predict on the same windows, `[b, c, h, w]`
        apart: in which windows the other is one to stay away from, `[b, windows]`

    Returns:
        positive, the mean over windows of `mean (ε_m - ε_i)² / scale`, `[b]`; and negative, `Σ c²`, `[b]`
    """
    windows = scale.shape[1]
    error = _by_window(prediction - target, windows)
    positive = (error.square().mean(2) / scale).mean(1)
    direction = _by_window(target - other, windows)
    length = direction.square().sum(2)
    on = apart & (length > 0)
    gone = (error * direction).sum(2) / length.where(on, torch.ones_like(length))
    return positive, (gone.square() * on).sum(1)


def style_terms(
    called: Tensor, uncalled: Tensor, target: Tensor, other: Tensor, scale: Tensor, style_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The objective's two terms where a style with trigger words is called and is not, per point; differentiable by both
    predictions.

    Both are to be right; and what the words change, `||(ε_m - ε_m') - (ε_i - ε_j)||²`: a style changes a subject by a
    fraction of what the subject's own LoRA does, and most LoRAs of styles change as much without their words. In the difference
    the error in the subject, which both predictions have, is gone.

    Args:
        called, uncalled: `ε_m` and `ε_m'`, with the style's words and without, `[b, c, h, w]`
        target, other: `ε_i` and `ε_j`, what they are to be
        scale: what a squared error is divided by, `[b]`
        style_scale: and one in the difference, `[b]`

    Returns:
        the mean of both errors, and the error in the difference, `[b]` each
    """
    errors = torch.stack([called - target, uncalled - other])
    positive = errors.square().mean((0, 2, 3, 4)) / scale
    return positive, (errors[0] - errors[1]).square().mean((1, 2, 3)) / style_scale


def _by_window(latents: Tensor, windows: int) -> Tensor:
    """`[b, c, h, windows * w]` -> `[b, windows, c * h * w]`"""
    return torch.stack(latents.chunk(windows, dim=-1), dim=1).flatten(2)
