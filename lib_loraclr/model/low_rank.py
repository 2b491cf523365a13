"""Low-rank matrices: factors, their cheap algebra, and truncation in the metric of the inputs.

Shapes: `d_out` rows and `d_in` columns of a layer's weight (a convolution's kernel flattened to
`d_in = c_in * k * k`), `r` rank, `n` rows of recorded inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """A delta `up @ down`.

    Attributes:
        up: `[d_out, r]`
        down: `[r, d_in]`
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)`"""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """The delta itself, `[d_out, d_in]`."""
        return self.up @ self.down

    def scaled(self, scale: float) -> Factors:
        return Factors(self.up * scale, self.down)

    def to(self, *args, **kwargs) -> Factors:
        return Factors(self.up.to(*args, **kwargs), self.down.to(*args, **kwargs))

    def norm(self) -> float:
        """Frobenius norm, from the two `[r, r]` Gram matrices instead of the dense delta."""
        squared = ((self.up.mT @ self.up) * (self.down @ self.down.mT)).sum()
        return float(squared.clamp_min(0).sqrt())


#: layer key -> its delta, or several that are added one after the other: joined into one, they would be there twice
Deltas = Mapping[str, Factors | tuple[Factors, ...]]


def together(networks: Sequence[Mapping[str, Factors]]) -> dict[str, tuple[Factors, ...]]:
    """What several networks change, all of them at once."""
    parts: dict[str, tuple[Factors, ...]] = {}
    for deltas in networks:
        for key, factors in deltas.items():
            parts[key] = (*parts.get(key, ()), factors)
    return parts


def on_device(deltas: Deltas, device: torch.device) -> dict[str, tuple[Factors, ...]]:
    """The same deltas there, so that applying them again and again copies nothing."""
    several = {key: own if isinstance(own, tuple) else (own,) for key, own in deltas.items()}
    return {key: tuple(factors.to(device) for factors in own) for key, own in several.items()}


def zero(d_out: int, d_in: int, like: Tensor) -> Factors:
    """The delta that does nothing, as rank 1 (files cannot hold rank 0)."""
    return Factors(like.new_zeros(d_out, 1), like.new_zeros(1, d_in))


def concatenate(deltas: Sequence[Factors]) -> Factors:
    """The sum of deltas, exactly, at the sum of their ranks."""
    return Factors(torch.cat([d.up for d in deltas], dim=1), torch.cat([d.down for d in deltas], dim=0))


def orthonormal_basis(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of `matrix [d, r]`: `[d, s]`, `s` the numerical rank (at least 1).

    Singular values below `max(d, r) * eps * largest` count as zero (the rule of `numpy.linalg.matrix_rank`).
    """
    basis, triangle = torch.linalg.qr(matrix)
    inner, singular, _ = _small_svd(triangle)
    if singular[0] == 0:
        return basis[:, :1]
    keep = singular > max(matrix.shape) * torch.finfo(matrix.dtype).eps * singular[0]
    return basis @ inner[:, keep]


def _small_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD `u, s, v^T` of a matrix of which one side is a rank, reckoned on the CPU.

    A graphics card takes many launches, each waited for, over what a processor does within its cache; merges have one or two such
    for every layer and LoRA.
    """
    u, s, vh = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    return u.to(matrix.device), s.to(matrix.device), vh.to(matrix.device)


def _small_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of a symmetric `[r, r]`, on the CPU as `_small_svd`."""
    values, vectors = torch.linalg.eigh(matrix.cpu())
    return values.to(matrix.device), vectors.to(matrix.device)


def column_basis(delta: Factors) -> Tensor:
    """Orthonormal columns that span those of a delta, `[d_out, s]`, `s` its numerical rank (at least 1).

    The rule is that of `orthonormal_basis` for the delta itself, so that it does not matter which factor holds the scale.
    """
    return orthonormal_basis(exact(delta).up)


def evened(delta: Factors) -> Factors:
    """The same delta, exactly, with its scale in both factors alike: `up / 2^k` and `2^k down`.

    Files keep the scale where they like (`alpha / r` is put into `up`); a power of two moves it without rounding.
    """
    up, down = float(delta.up.norm()), float(delta.down.norm())
    if not (up > 0 and down > 0):
        return delta
    scale = 2.0 ** round(math.log2(up / down) / 2)
    return Factors(delta.up / scale, delta.down * scale)


def balanced(delta: Factors) -> Factors:
    """The same delta with both factors of equal size, `up = U sqrt(S)`, `down = sqrt(S) V^T`.

    Gradient steps on factors move the product evenly only when neither factor dwarfs the other, and half
    precision keeps more of balanced factors. QR of both factors keeps the SVD at `[r, r]`.
    """
    basis, triangle = torch.linalg.qr(delta.up)
    return _balanced(basis, triangle @ delta.down)


def _balanced(basis: Tensor, coordinates: Tensor) -> Factors:
    """`basis @ coordinates` balanced; the columns of `basis [d_out, r]` are orthonormal."""
    q_down, r_down = torch.linalg.qr(coordinates.mT)
    u, s, vh = _small_svd(r_down.mT)
    root = s.sqrt()
    up, down = (basis @ u) * root, root[:, None] * (vh @ q_down.mT)
    # An SVD is unique only up to signs, and backends disagree: the largest entry of each column is made positive.
    signs = torch.sign(up.gather(0, up.abs().argmax(0, keepdim=True)))
    signs = torch.where(signs == 0, torch.ones_like(signs), signs)
    return Factors(up * signs, down * signs.mT)


def whole(dense: Tensor) -> Factors:
    """A matrix `[d_out, d_in]` as factors of full rank, one of which is the identity."""
    identity = torch.eye(min(dense.shape), dtype=dense.dtype, device=dense.device)
    return Factors(identity, dense) if dense.shape[0] <= dense.shape[1] else Factors(dense, identity)


def precise(matrix: Tensor) -> Tensor:
    """In double precision; on the CPU where the device has none (Apple's)."""
    return matrix.to("cpu" if matrix.device.type == "mps" else matrix.device, torch.float64)


def factored(dense: Tensor, accuracy: float) -> tuple[Factors, float]:
    """A matrix as factors of the least rank that loses at most `accuracy` of its Frobenius norm (Eckart-Young).

    Args:
        dense: `[d_out, d_in]`

    Returns:
        the factors, and the share of the norm that is lost
    """
    wide = dense.shape[0] <= dense.shape[1]
    matrix = dense if wide else dense.mT
    # in double precision, as squared singular values are compared with a share that is squared too
    exact = precise(matrix)
    energies, vectors = torch.linalg.eigh(exact @ exact.mT)
    energies, vectors = energies.flip(0).clamp_min(0), vectors.flip(1)
    if energies.sum() == 0:
        return zero(*dense.shape, like=dense), 0.0
    lost = (1 - energies.cumsum(0) / energies.sum()).clamp_min(0).sqrt()
    rank = min(len(lost), int((lost > accuracy).sum()) + 1)
    if rank == len(lost):
        return whole(dense), 0.0
    top = vectors[:, :rank]
    up, down = top.to(dense), (top.mT @ exact).to(dense)
    return (Factors(up, down) if wide else Factors(down.mT, up.mT)), float(lost[rank - 1])


@dataclass(frozen=True)
class Truncation:
    """A delta at lower rank, and the share (0..1) of its effect that was kept on the recording that lost most by it."""

    factors: Factors
    kept: float


def truncate(
    delta: Factors, recordings: Sequence[Tensor] | None, *, rank: int | None = None, share: float = 1.0
) -> Truncation:
    """The best approximation of a delta at lower rank, measured on the inputs: `min ||(D - L) S^(1/2)||_F`, `S = Σ X_k^T X_k`.

    With `D = U K` (`U` orthonormal) the effect energy of a direction `v` in the column space is
    `Σ_k ||v^T K X_k^T||²`; keeping the eigenvectors of the largest energies is the optimum (Eckart-Young in the
    metric `S`), and costs one eigenproblem of size `r`. `S` itself, `[d_in, d_in]`, is never made.

    Args:
        delta: up `[d_out, r]`, down `[r, d_in]`
        recordings: `X_k`, `[n_k, d_in]` each, rows scaled by the root of their weight; None means that `S` is the identity
            (plain Frobenius norm)
        rank: the rank to keep at most; None lets `share` alone decide
        share: the least share of its energy that *every* recording keeps, so that a weak concept is not cut away for a strong
            one; decides when `rank` is None. A direction that no input goes into has no energy and is dropped even at 1;
            `exact` drops nothing

    Returns:
        balanced factors of rank between 1 and `r`, and the share of the energy that the weakest recording keeps
    """
    basis, triangle = torch.linalg.qr(delta.up)
    coordinates = triangle @ delta.down
    effects = [coordinates] if recordings is None else [coordinates @ inputs.mT for inputs in recordings]
    together = torch.cat(effects, dim=1)
    energies, vectors = _small_eigh(together @ together.mT)
    vectors = vectors.flip(1)
    if energies.sum() <= 0:
        return Truncation(zero(*delta.shape, like=delta.up), 1.0)
    kept = torch.stack([_kept_shares(effect, vectors) for effect in effects]).amin(0)
    if rank is None:
        # float rounding in the running sum must not cost a direction when everything was asked for
        tolerance = len(energies) * torch.finfo(energies.dtype).eps
        rank = int((kept < share - tolerance).sum()) + 1
    rank = max(1, min(rank, len(energies)))
    top = vectors[:, :rank]
    return Truncation(_balanced(basis @ top, top.mT @ coordinates), float(kept[rank - 1]))


def _kept_shares(effect: Tensor, vectors: Tensor) -> Tensor:
    """The share of an effect's energy that the first 1, 2, … directions keep, `[r]`; 1 where there is no energy.

    Args:
        effect: `[r, n]`
        vectors: orthonormal directions, `[r, r]`
    """
    energies = (vectors.mT @ effect).square().sum(1)
    total = energies.sum()
    return (energies.cumsum(0) / total).clamp(max=1) if total > 0 else torch.ones_like(energies)


def exact(delta: Factors) -> Factors:
    """The same delta, balanced, at its numerical rank (at least 1); the rule is that of `orthonormal_basis`."""
    factors = balanced(delta)
    # balanced: the rows of `down` are as long as the roots of the singular values
    singular = factors.down.square().sum(1)
    keep = singular > max(delta.shape) * torch.finfo(singular.dtype).eps * singular[0]
    if not keep.any():
        return zero(*delta.shape, like=delta.up)
    return Factors(factors.up[:, keep], factors.down[keep])
