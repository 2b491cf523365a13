"""Low-rank algebra against dense matrices, and truncation against the textbook's dense optimum."""

from __future__ import annotations

import pytest
import torch

from lib_loraclr.model.low_rank import Factors, balanced, concatenate, exact, orthonormal_basis, truncate, zero

#: relative; float64 rounding through a few products and one factorisation
CLOSE = 1e-10
#: relative; the metric's condition number (about 1e3) stands between the two ways to truncate
TRUNCATED = 1e-7

#: d_out, d_in, rank: thin, wide, and more rank than either side has room for (a merge of many LoRAs in a small layer)
SHAPES = [(20, 30, 4), (7, 50, 6), (30, 5, 10), (5, 30, 10), (6, 6, 9)]


def random_factors(d_out: int, d_in: int, rank: int, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
    return Factors(up, torch.randn(rank, d_in, generator=generator, dtype=torch.float64))


def random_inputs(d_in: int, seed: int = 1) -> torch.Tensor:
    """Inputs that are far from white, as recorded ones are."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4 * d_in, d_in, generator=generator, dtype=torch.float64)
    return rows * torch.logspace(0, -1.5, d_in, dtype=torch.float64)


def root(gram: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def effect_error(delta: Factors, other: Factors, inputs: torch.Tensor) -> float:
    """`||(D - L) S^(1/2)||_F²`, `S` the Gram matrix of the inputs."""
    return float(((delta.dense() - other.dense()) @ root(inputs.mT @ inputs)).square().sum())


def assert_close(result: torch.Tensor, expected: torch.Tensor, tolerance: float = CLOSE) -> None:
    assert result.shape == expected.shape
    assert float((result - expected).norm()) <= tolerance * max(float(expected.norm()), 1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_factor_algebra_equals_dense_algebra(shape: tuple[int, int, int]) -> None:
    a, b = random_factors(*shape), random_factors(shape[0], shape[1], 3, seed=5)
    assert a.shape == a.dense().shape == shape[:2]
    assert_close(a.scaled(-0.3).dense(), -0.3 * a.dense())
    assert_close(concatenate([a, b]).dense(), a.dense() + b.dense())
    assert concatenate([a, b]).rank == a.rank + b.rank
    assert a.norm() == pytest.approx(float(a.dense().norm()), rel=CLOSE)


def test_zero_changes_nothing_and_has_a_rank() -> None:
    nothing = zero(4, 7, like=torch.empty(0, dtype=torch.float64))
    assert nothing.rank == 1
    assert nothing.up.dtype == torch.float64
    assert torch.equal(nothing.dense(), torch.zeros(4, 7, dtype=torch.float64))


@pytest.mark.parametrize("independent", [1, 3, 6])
def test_basis_is_orthonormal_and_spans_the_columns_at_their_numerical_rank(independent: int) -> None:
    matrix = random_factors(9, 6, independent).dense()
    basis = orthonormal_basis(matrix)
    assert basis.shape == (9, independent)
    assert_close(basis.mT @ basis, torch.eye(independent, dtype=torch.float64))
    assert_close(basis @ (basis.mT @ matrix), matrix)


def test_basis_of_nothing_has_one_column() -> None:
    assert orthonormal_basis(torch.zeros(5, 3)).shape == (5, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_balancing_keeps_the_product_and_evens_the_factors(shape: tuple[int, int, int]) -> None:
    delta = random_factors(*shape)
    lopsided = Factors(delta.up * 1e4, delta.down)
    even = balanced(lopsided)
    assert_close(even.dense(), lopsided.dense())
    assert_close(even.up.mT @ even.up, even.down @ even.down.mT)
    assert lopsided.up.norm() > 100 * lopsided.down.norm()  # so it was not balanced before


def test_balancing_is_unique_whatever_the_factors_were() -> None:
    delta = random_factors(12, 9, 4)
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    same = Factors(delta.up @ mixing, torch.linalg.solve(mixing, delta.down))
    assert_close(balanced(same).up, balanced(delta).up)
    assert_close(balanced(same).down, balanced(delta).down)


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("white", [False, True], ids=["inputs", "plain"])
def test_truncation_equals_the_dense_optimum(rank: int, white: bool) -> None:
    delta = random_factors(14, 11, 6)
    inputs = torch.eye(11, dtype=torch.float64) if white else random_inputs(11)
    half = root(inputs.mT @ inputs)
    u, s, vh = torch.linalg.svd(delta.dense() @ half)
    expected = u[:, :rank] * s[:rank] @ vh[:rank] @ torch.linalg.inv(half)
    result = truncate(delta, None if white else inputs, rank=rank)
    assert result.factors.rank == rank
    assert_close(result.factors.dense(), expected, TRUNCATED)
    assert result.kept == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), abs=TRUNCATED)


def test_no_nearby_delta_of_that_rank_is_better_and_plain_truncation_is_worse() -> None:
    delta, inputs = random_factors(14, 11, 6), random_inputs(11)
    best = truncate(delta, inputs, rank=3).factors
    least = effect_error(delta, best, inputs)
    generator = torch.Generator().manual_seed(3)
    for size in (1e-3, 1e-2, 1e-1) * 10:
        up = best.up + size * torch.randn(best.up.shape, generator=generator, dtype=torch.float64)
        down = best.down + size * torch.randn(best.down.shape, generator=generator, dtype=torch.float64)
        assert effect_error(delta, Factors(up, down), inputs) > least
    plain = truncate(delta, None, rank=3).factors
    assert effect_error(delta, plain, inputs) > 1.5 * least
    identity = torch.eye(11, dtype=torch.float64)
    assert effect_error(delta, plain, identity) < effect_error(delta, best, identity)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_kept_share_is_the_share_of_the_effect(rank: int) -> None:
    delta, inputs = random_factors(14, 11, 6), random_inputs(11)
    cut = truncate(delta, inputs, rank=rank)
    total = effect_error(delta, zero(14, 11, like=delta.up), inputs)
    assert cut.kept == pytest.approx(1 - effect_error(delta, cut.factors, inputs) / total, abs=CLOSE)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_automatic_rank_is_the_least_that_keeps_the_share(share: float) -> None:
    delta, inputs = random_factors(14, 11, 6), random_inputs(11)
    cut = truncate(delta, inputs, share=share)
    assert cut.kept >= share > truncate(delta, inputs, rank=cut.factors.rank - 1).kept


@pytest.mark.parametrize("shape", SHAPES)
def test_keeping_the_whole_share_keeps_the_delta(shape: tuple[int, int, int]) -> None:
    delta = random_factors(*shape)
    cut = truncate(delta, random_inputs(shape[1]), share=1.0)
    assert cut.kept == pytest.approx(1)
    assert_close(cut.factors.dense(), delta.dense(), TRUNCATED)
    assert cut.factors.rank <= min(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_rank_than_there_is_keeps_the_delta(shape: tuple[int, int, int]) -> None:
    delta = random_factors(*shape)
    assert_close(truncate(delta, None, rank=max(shape)).factors.dense(), delta.dense())


@pytest.mark.parametrize("inputs", [None, torch.zeros(9, 7, dtype=torch.float64)], ids=["no delta", "no inputs"])
def test_what_has_no_effect_becomes_the_delta_that_does_nothing(inputs: torch.Tensor | None) -> None:
    delta = random_factors(5, 7, 3).scaled(0.0 if inputs is None else 1.0)
    cut = truncate(delta, inputs, share=0.9)
    assert cut.kept == 1
    assert not cut.factors.dense().any()


def test_exact_keeps_what_truncation_by_energy_cannot_see() -> None:
    """One direction is a hundred-thousandth of the others, and no input goes into another: both are part of the delta."""
    up, down = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64)).Q for n in (14, 11))
    delta = Factors((up * torch.tensor([1.0, 1.0, 1e-5, 1.0], dtype=torch.float64)).float(), down.mT.float())
    inputs = (torch.randn(20, 11, dtype=torch.float64) @ (torch.eye(11) - torch.outer(down[:, 3], down[:, 3]))).float()
    kept = exact(delta)
    assert kept.rank == 4
    assert float((kept.dense() - delta.dense()).abs().max()) < 1e-6
    assert float((kept.dense() @ down[:, 2].float()).norm()) == pytest.approx(1e-5, rel=0.02)
    for blind in (inputs, None):
        assert truncate(delta, blind, share=1.0).factors.rank < 4, "control: energies do not show it"


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_drops_only_what_is_not_there(shape: tuple[int, int, int]) -> None:
    delta = random_factors(*shape)
    twice = concatenate([delta, delta.scaled(-0.5)])
    assert exact(twice).rank == min(shape)
    assert_close(exact(twice).dense(), delta.scaled(0.5).dense())
    nothing = exact(delta.scaled(0.0))
    assert nothing.rank == 1 and not nothing.dense().any()
