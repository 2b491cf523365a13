"""A shared space first: all deltas projected onto one small basis of outputs and one of inputs, and solved there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....model import Factors, column_basis, orthonormal_basis
from ....request import option
from ...layer_problem import LayerProblem
from .. import LayerResult, merge_method
from ..ridge import closed_form


@dataclass(frozen=True)
class SharedSpaceOptions:
    """Options of the closed form in a shared space."""

    share: float = option(
        0.5, "Of the ranks of all LoRAs together, the rank of the shared space.", minimum=0.0, maximum=1.0
    )
    ridge: float = option(
        0.01, "Pull towards the average of the LoRAs, as of the closed form.", minimum=0.0, maximum=10.0
    )


@merge_method(
    name="shared_space",
    label="Closed form in a shared space",
    source="the outlook of LoRACLR, arXiv 2412.09622, in the bases of Core Space, arXiv 2509.17786",
    options=SharedSpaceOptions,
    baseline=True,
)
def shared_space(problem: LayerProblem, options: SharedSpaceOptions) -> LayerResult:
    """Projects all deltas onto a small basis that they share, and merges what is left of them in closed form there.

    `U [d_out, k]` and `V [d_in, k]` are the strongest singular vectors of the deltas side by side and one above the other, each
    at the norm 1, so that a strong LoRA does not take the space for itself. With `M_i = U^T D_i V` the merge is `U M V^T`, `M`
    the closed form of the `M_i` at the inputs `X_i V`: `ridge` in `k × k` unknowns instead of `R × d_in`. What a concept does
    outside the space is lost.
    """
    left, right = shared_bases(problem, options.share)
    deltas = tuple(delta and Factors(left.mT @ delta.up, delta.down @ right) for delta in problem.deltas)
    recordings = tuple(replace(recording, inputs=recording.inputs @ right) for recording in problem.recordings)
    inside = LayerProblem(problem.key, deltas, recordings)
    identity = torch.eye(left.shape[1], dtype=left.dtype, device=left.device)
    _, core = closed_form(inside, identity, options.ridge)
    return LayerResult(Factors(left, core @ right.mT), {"space": left.shape[1], "outside": _outside(problem, deltas)})


def shared_bases(problem: LayerProblem, share: float) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the outputs and inputs that the deltas have in common, `[d_out, k]` and `[d_in, k]`.

    Args:
        share: `k` is this share of the sum of the deltas' ranks, rounded up; at least 1, and no more than they span
    """
    present = [delta for delta in problem.present if delta.norm() > 0]
    if not present:
        first = problem.present[0]
        rows, columns = (torch.eye(size, 1, dtype=first.up.dtype, device=first.up.device) for size in first.shape)
        return rows, columns
    left = orthonormal_basis(torch.cat([column_basis(delta) for delta in present], dim=1))
    right = orthonormal_basis(torch.cat([column_basis(_transposed(delta)) for delta in present], dim=1))
    units = [delta.scaled(1 / delta.norm()) for delta in present]
    cores = [(left.mT @ delta.up) @ (delta.down @ right) for delta in units]
    rank = max(1, math.ceil(share * sum(column_basis(delta).shape[1] for delta in present)))
    rank = min(rank, left.shape[1], right.shape[1])
    outputs = torch.linalg.svd(torch.cat(cores, dim=1), full_matrices=False)[0][:, :rank]
    inputs = torch.linalg.svd(torch.cat(cores, dim=0), full_matrices=False)[2][:rank].mT
    return left @ outputs, right @ inputs


def _transposed(delta: Factors) -> Factors:
    return Factors(delta.down.mT, delta.up.mT)


def _outside(problem: LayerProblem, inside: tuple[Factors | None, ...]) -> float:
    """The share of the deltas' energy that the space does not hold, on the average."""
    pairs = zip(problem.deltas, inside, strict=True)
    kept = [own.norm() ** 2 / delta.norm() ** 2 for delta, own in pairs if delta is not None and delta.norm() > 0]
    return 1 - sum(kept) / len(kept) if kept else 0.0
