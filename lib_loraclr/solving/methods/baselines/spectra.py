"""Merges of singular vectors, which several baselines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....model import Factors, zero
from ....request import option


@dataclass(frozen=True)
class ScaleOptions:
    """The one thing that most data-free merges tune on validation data."""

    scale: float = option(1.0, "What the merged delta is multiplied by.", minimum=0.0, maximum=10.0)


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U [d_out, s]`, singular values `[s]` and `V^T [s, d_in]`, `s` the numerical rank (`numpy.linalg.matrix_rank`'s rule)."""
    u, singular, v = torch.linalg.svd(matrix, full_matrices=False)
    keep = singular > max(matrix.shape) * torch.finfo(matrix.dtype).eps * singular[:1]
    return u[:, keep], singular[keep], v[keep]


def isotropic(matrix: Tensor) -> Factors:
    """The same singular vectors, each with the mean of the singular values (Iso-C, arXiv 2502.04959, eq. 5).

    Of a matrix of low rank only the vectors that it has: the others are arbitrary, and their share of the mean would be noise.
    """
    u, singular, v = svd(matrix)
    return Factors(singular.mean() * u, v) if len(singular) else zero(*matrix.shape, like=matrix)


def singular_vector_merge(matrices: Sequence[Tensor]) -> Tensor:
    """TSV-M (arXiv 2412.00081, algorithm 1): the strongest `1/N` of every matrix's singular vectors, made orthogonal together.

    `Σ_i U_i S_i V_i^T` with `[U_1 … U_N]` and `[V_1 … V_N]` replaced by the nearest orthonormal matrices.

    Args:
        matrices: `[d_out, d_in]` each
    """
    each = max(1, min(matrices[0].shape) // len(matrices))
    parts = [tuple(part[..., :each] for part in (u, s, v.mT)) for u, s, v in map(svd, matrices)]
    left, singular, right = (torch.cat([part[k] for part in parts], dim=-1) for k in range(3))
    return nearest_orthonormal(left) * singular @ nearest_orthonormal(right).mT


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """`argmin ||Q - M||_F` over matrices with orthonormal columns: `P Q^T` of the SVD `M = P S Q^T` (Procrustes)."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v
