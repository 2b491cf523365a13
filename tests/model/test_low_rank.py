"""Low-rank algebra against dense matrices, and truncation against the textbook's dense optimum."""

from __future__ import annotations

import pytest
import torch

from lib_loraclr.model.low_rank import (
    Factors,
    balanced,
    column_basis,
    concatenate,
    evened,
    exact,
    orthonormal_basis,
    truncate,
    zero,
)

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
    result = truncate(delta, None if white else [inputs], rank=rank)
    assert result.factors.rank == rank
    assert_close(result.factors.dense(), expected, TRUNCATED)
    assert result.kept == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), abs=TRUNCATED)


def test_no_nearby_delta_of_that_rank_is_better_and_plain_truncation_is_worse() -> None:
    delta, inputs = random_factors(14, 11, 6), random_inputs(11)
    best = truncate(delta, [inputs], rank=3).factors
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
    cut = truncate(delta, [inputs], rank=rank)
    total = effect_error(delta, zero(14, 11, like=delta.up), inputs)
    assert cut.kept == pytest.approx(1 - effect_error(delta, cut.factors, inputs) / total, abs=CLOSE)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_automatic_rank_is_the_least_that_keeps_the_share(share: float) -> None:
    delta, inputs = random_factors(14, 11, 6), random_inputs(11)
    cut = truncate(delta, [inputs], share=share)
    assert cut.kept >= share > truncate(delta, [inputs], rank=cut.factors.rank - 1).kept


@pytest.mark.parametrize("shape", SHAPES)
def test_keeping_the_whole_share_keeps_the_delta(shape: tuple[int, int, int]) -> None:
    delta = random_factors(*shape)
    cut = truncate(delta, [random_inputs(shape[1])], share=1.0)
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
    cut = truncate(delta, None if inputs is None else [inputs], share=0.9)
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
    for blind in ([inputs], None):
        assert truncate(delta, blind, share=1.0).factors.rank < 4, "control: energies do not show it"


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_drops_only_what_is_not_there(shape: tuple[int, int, int]) -> None:
    delta = random_factors(*shape)
    twice = concatenate([delta, delta.scaled(-0.5)])
    assert exact(twice).rank == min(shape)
    assert_close(exact(twice).dense(), delta.scaled(0.5).dense())
    nothing = exact(delta.scaled(0.0))
    assert nothing.rank == 1 and not nothing.dense().any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [2.0**-9, 1.0, 2.0**9])
def test_the_column_basis_of_a_delta_is_that_of_its_columns(shape: tuple[int, int, int], scale: float) -> None:
    delta = random_factors(*shape)
    basis = column_basis(Factors(delta.up * scale, delta.down / scale))
    expected = orthonormal_basis(delta.dense())
    assert basis.shape == expected.shape
    assert_close(basis @ basis.mT, expected @ expected.mT)


def test_the_column_basis_has_no_direction_that_is_rounding() -> None:
    """Eight factors that span two directions: in single precision the other six are 1e-7 of them, and not 0."""
    two, eight = random_factors(64, 8, 2), random_factors(8, 48, 8, seed=1)
    delta = Factors(two.dense().float(), eight.dense().float())
    assert delta.rank == 8
    assert column_basis(delta).shape == (64, 2)
    assert orthonormal_basis(balanced(delta).up).shape[1] > 2, "control: held against the root of what it is, they pass"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_evening_moves_the_scale_without_rounding(scale: float) -> None:
    delta = random_factors(20, 30, 4).to(torch.float32)
    lopsided = Factors(delta.up * scale, delta.down)
    even = evened(lopsided)
    assert torch.equal(even.dense(), lopsided.dense())
    assert 0.5 <= float(even.up.norm() / even.down.norm()) <= 2


def test_evening_nothing_is_nothing() -> None:
    nothing = zero(4, 7, like=torch.empty(0))
    assert evened(nothing) is nothing


def recordings_of(d_in: int, strengths: tuple[float, ...]) -> list[torch.Tensor]:
    """Inputs of several concepts, each with directions of its own beside common ones."""
    generator = torch.Generator().manual_seed(8)
    recordings = []
    for strength in strengths:
        tilt = torch.logspace(0, -2, d_in, dtype=torch.float64)[torch.randperm(d_in, generator=generator)]
        recordings.append(strength * torch.randn(30, d_in, generator=generator, dtype=torch.float64) * tilt)
    return recordings


def shares_kept(delta: Factors, cut: Factors, recordings: list[torch.Tensor]) -> list[float]:
    """By each recording's lost outputs, row by row."""
    results = []
    for inputs in recordings:
        lost = sum(float(((delta.dense() - cut.dense()) @ x).square().sum()) for x in inputs)
        results.append(1 - lost / sum(float((delta.dense() @ x).square().sum()) for x in inputs))
    return results


@pytest.mark.parametrize("share", [0.6, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (1.0, 0.1, 0.03)], ids=["alike", "unlike"])
def test_the_automatic_rank_is_the_least_at_which_every_recording_keeps_its_share(
    strengths: tuple[float, ...], share: float
) -> None:
    delta, recordings = random_factors(14, 11, 9), recordings_of(11, strengths)
    tried = {rank: truncate(delta, recordings, rank=rank) for rank in range(1, 10)}
    weakest = {rank: min(shares_kept(delta, cut.factors, recordings)) for rank, cut in tried.items()}
    for rank, cut in tried.items():
        assert cut.kept == pytest.approx(weakest[rank], abs=CLOSE), "what is said to be kept is what the weakest keeps"
    cut = truncate(delta, recordings, share=share)
    assert cut.factors.rank == next(rank for rank in tried if weakest[rank] >= share)
    assert_close(cut.factors.dense(), tried[cut.factors.rank].factors.dense())


def test_a_weak_recording_is_not_cut_away_for_a_strong_one() -> None:
    """The strong one's directions have all but a ten-thousandth of the energy; the weak one has a direction of its own."""
    drawn = random_factors(14, 11, 6)
    own = torch.linalg.qr(drawn.down.mT).Q.mT
    delta = Factors(torch.linalg.qr(drawn.up).Q, own)
    strong = torch.randn(40, 3, dtype=torch.float64) @ own[:3]
    weak = 0.01 * torch.randn(40, 1, dtype=torch.float64) @ own[4:5]
    cut = truncate(delta, [strong, weak], share=0.999)
    assert min(shares_kept(delta, cut.factors, [strong, weak])) >= 0.999
    by_energy = truncate(delta, [torch.cat([strong, weak])], share=0.999)
    assert by_energy.kept >= 0.999 and by_energy.factors.rank < cut.factors.rank
    assert shares_kept(delta, by_energy.factors, [weak])[0] < 0.1, "control: by the total energy it is cut away"


def test_the_order_and_the_number_of_recordings_do_not_change_the_metric() -> None:
    delta, recordings = random_factors(14, 11, 6), recordings_of(11, (1.0, 0.3))
    whole = truncate(delta, [torch.cat(recordings)], rank=3).factors.dense()
    assert_close(truncate(delta, recordings, rank=3).factors.dense(), whole)
    assert_close(truncate(delta, recordings[::-1], rank=3).factors.dense(), whole)


def test_a_recording_on_which_nothing_is_done_keeps_all_of_it() -> None:
    delta, (some,) = random_factors(14, 11, 6), recordings_of(11, (1.0,))
    alone = truncate(delta, [some], share=0.9)
    beside = truncate(delta, [some, torch.zeros(5, 11, dtype=torch.float64)], share=0.9)
    assert beside.factors.rank == alone.factors.rank
    assert beside.kept == pytest.approx(alone.kept, rel=CLOSE)


@pytest.mark.parametrize(
    "work",
    [lambda d: orthonormal_basis(d.up), balanced, exact, lambda d: truncate(d, [random_inputs(300)], rank=2)],
    ids=["basis", "balanced", "exact", "truncate"],
)
def test_only_matrices_of_the_rank_are_decomposed_and_those_on_the_cpu(monkeypatch, work) -> None:
    """Cards are slow at it; a matrix that is as long as the layer is wide stays where it is, and goes through a QR."""
    seen = []
    for name in ("svd", "eigh"):
        decompose = getattr(torch.linalg, name)

        def look(matrix, *args, decompose=decompose, **kwargs):
            seen.append((matrix.device.type, tuple(matrix.shape)))
            return decompose(matrix, *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, look)
    work(random_factors(200, 300, 4))
    assert seen and set(seen) <= {("cpu", (4, 4)), ("cpu", (2, 2)), ("cpu", (2, 4)), ("cpu", (4, 2))}
