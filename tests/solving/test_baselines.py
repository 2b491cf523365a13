"""Each baseline beside a slow second way, its authors' own code, or what its paper proves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib_loraclr.model.low_rank import Factors
from lib_loraclr.solving.error_units import units as error_units
from lib_loraclr.solving.layer_problem import LayerProblem
from lib_loraclr.solving.methods.baselines.dare import dropped
from lib_loraclr.solving.methods.baselines.gradient_fusion import fused
from lib_loraclr.solving.methods.baselines.regmean import shrunk_gram
from lib_loraclr.solving.methods.baselines.shared_space import shared_bases
from lib_loraclr.solving.methods.baselines.spectra import isotropic, singular_vector_merge
from tests.solving.test_layer_problem import dense_target, random_problem
from tests.solving.test_methods import PROBLEMS, dense, distance, merge

CLOSE = 1e-9
each = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def deltas_of(problem: LayerProblem) -> list[Tensor]:
    return [dense_target(problem, (i,)) for i in range(len(problem.deltas))]


@pytest.mark.parametrize("density", [0.2, 0.5])
@each
def test_ties_is_pefts(problem: LayerProblem, density: float) -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    expected = peft.ties(deltas_of(problem), torch.ones(len(problem.deltas)), density)
    assert distance(dense("ties", problem, density=density), expected) < CLOSE


def test_ties_entry_by_entry() -> None:
    """Trim to two of four, elect by the larger sum, average those that agree."""
    rows = [[5.0, -1.0, 3.0, 0.5], [-2.0, -4.0, 0.1, 0.2], [1.0, 0.0, 1.0, -2.5]]
    identity = torch.eye(1, dtype=torch.float64)
    deltas = tuple(Factors(identity, torch.tensor([row], dtype=torch.float64)) for row in rows)
    problem = LayerProblem("lora_unet_layer", deltas)
    expected = torch.tensor([[5.0, -4.0, (3 + 1) / 2, -2.5]], dtype=torch.float64)
    # of the third delta, 1, 1 and -2.5: either 1 may be trimmed
    found = dense("ties", problem, density=0.5)
    assert torch.equal(found[:, [1, 3]], expected[:, [1, 3]])
    assert float(found[0, 0]) in (5.0, 3.0) and float(found[0, 2]) in (3.0, 2.0)


def test_dare_drops_a_share_and_is_the_sum_on_average() -> None:
    problem = random_problem()
    total = dense_target(problem, (0, 1, 2))
    draws = torch.stack([dense("dare", problem, seed=seed) for seed in range(400)])
    assert distance(draws[0], total) > 0.5, "control: one draw is far from it"
    assert distance(draws.mean(0), total) < 0.1
    kept = dropped(torch.ones(100, 100), 0.3, torch.Generator().manual_seed(1))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.3]), "an entry is dropped, or rescaled"
    assert float((kept > 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    other = replace(problem, key="lora_unet_other")
    assert distance(dense("dare", other), dense("dare", problem)) > 0.1, "each layer has its own draw"


@each
def test_kohyas_svd_is_the_best_of_its_rank_with_outliers_cut(problem: LayerProblem) -> None:
    total = dense_target(problem, tuple(range(len(problem.deltas))))
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    up, down = u[:, :2] @ torch.diag(s[:2]), v[:2]
    bound = float(torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99))
    expected = up.clamp(min=-bound, max=bound) @ down.clamp(min=-bound, max=bound)
    assert distance(dense("kohya_svd", problem, new_rank=2), expected) < CLOSE


def test_kohyas_cut_costs_where_it_matters_most() -> None:
    """Why it is not the best approximation of its rank, which would be exact here."""
    problem = random_problem(size=(40, 40))
    total = dense_target(problem, (0, 1, 2))
    assert int(torch.linalg.matrix_rank(total)) == 7
    assert distance(dense("kohya_svd", problem, new_rank=7), total) > 0.05


@each
def test_supermerger_adds_the_sum_and_all_cross_terms(problem: LayerProblem) -> None:
    total = dense_target(problem, tuple(range(len(problem.deltas))))
    for i, a in enumerate(problem.present):
        for j, b in enumerate(problem.present):
            if i != j:
                rank = min(a.rank, b.rank)
                total = total + a.up[:, :rank] @ b.down[:rank]
    assert distance(dense("supermerger", problem), total) < CLOSE


@each
def test_knots_by_its_authors_formula(problem: LayerProblem) -> None:
    """`U S V` of all deltas side by side; with everything kept and one sign, the merge is `U` times the elected coordinates."""
    deltas = deltas_of(problem)
    u, s, v = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    keep = s > 1e-9 * s[0]
    parts = (s[keep, None] * v[keep]).chunk(len(deltas), dim=1)
    merged = torch.zeros_like(parts[0])
    for place in range(merged.numel()):
        values = [float(part.flatten()[place]) for part in parts]
        sign = 1.0 if sum(values) > 0 else -1.0
        agreeing = [value for value in values if value * sign > 0]
        merged.view(-1)[place] = sum(agreeing) / max(1, len(agreeing))
    # an SVD is unique up to signs, and so is what is elected: rows of other signs are compared in the same basis
    assert distance(dense("knots", problem, density=1.0), u[:, keep] @ merged) < 1e-6


@each
def test_core_space_loses_nothing_and_sums_to_the_sum(problem: LayerProblem) -> None:
    """The paper's proposition: what is merged there linearly is merged outside."""
    total = dense_target(problem, tuple(range(len(problem.deltas))))
    assert distance(dense("core_space", problem, merge="sum", isotropic=False), total) < CLOSE
    assert distance(dense("core_space", problem), total) > 0.01, "control: TSV and isotropic scaling are not the sum"


@each
def test_iso_c_has_the_sums_singular_vectors_and_one_singular_value(problem: LayerProblem) -> None:
    total = dense_target(problem, tuple(range(len(problem.deltas))))
    singular = torch.linalg.svdvals(total)
    rank = int(torch.linalg.matrix_rank(total))
    found = dense("iso_c", problem)
    values = torch.linalg.svdvals(found)
    assert torch.allclose(values[:rank], singular[:rank].mean().expand(rank))
    assert float(values[rank:].sum()) < 1e-9 * float(values[0])
    aligned = found.mT @ total
    assert distance(aligned, aligned.mT) < 1e-8, "the same singular vectors: their product is symmetric"


def test_singular_vector_merge_keeps_what_is_already_apart() -> None:
    """Matrices on outputs and inputs of their own: nothing has to be made orthogonal."""
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(6, 2, generator=generator) @ torch.randn(2, 6, generator=generator) for _ in range(2)]
    apart = [torch.block_diag(blocks[0], torch.zeros(6, 6)), torch.block_diag(torch.zeros(6, 6), blocks[1])]
    assert distance(singular_vector_merge(apart), sum(apart)) < 1e-5
    alike = [apart[0], apart[0] + 0.1 * apart[1]]
    assert distance(singular_vector_merge(alike), sum(alike)) > 0.1, "the control: what they share is not there twice"


def test_isotropic_of_nothing_is_nothing() -> None:
    assert float(isotropic(torch.zeros(4, 3)).dense().abs().max()) == 0


@pytest.mark.parametrize("threshold", [0.0, 10.0])
def test_ace_by_its_authors_steps(threshold: float) -> None:
    """`unlike` and alike, with explicit inverses."""
    problem, eps = random_problem(size=(9, 7)), 0.01
    deltas = deltas_of(problem)
    sizes = torch.stack([torch.trace(d.mT @ d) for d in deltas])
    unlike = threshold == 0.0
    grams, ridged, right = [], [], torch.zeros(9, 7, dtype=torch.float64)
    identity = torch.eye(7, dtype=torch.float64)
    for delta in deltas:
        centred = delta - delta.mean(0)
        gram = centred.mT @ centred
        size = torch.trace(gram) if unlike else 1.0
        grams.append(gram / size)
        ridged.append(gram / size + eps / size * identity)
        right = right + centred @ ridged[-1]
    common = sum(grams).mean(0, keepdim=True) / (sizes.mean() if unlike else 1)
    expected = right @ torch.linalg.inv(sum(ridged) + common)
    if unlike:
        missed = expected + sum(
            (d - d.mean(0)) @ (gram - sum(ridged) / 3) for d, gram in zip(deltas, grams, strict=True)
        )
        u, s, v = torch.linalg.svd(missed, full_matrices=False)
        expected = expected + s[:2].mean() * u[:, :2] @ v[:2]
    assert distance(dense("ace", problem, threshold=threshold), expected) < 1e-6


@pytest.mark.parametrize("off_diagonal", [0.0, 0.9, 1.0])
def test_regmean_solves_its_normal_equations(off_diagonal: float) -> None:
    problem = random_problem()
    total, right = 0.0, 0.0
    for i, recording in enumerate(problem.recordings[:-1]):
        gram = recording.inputs.mT @ recording.inputs / len(recording.inputs)
        gram = gram * (off_diagonal + (1 - off_diagonal) * torch.eye(10, dtype=torch.float64))
        assert distance(shrunk_gram(recording.inputs, off_diagonal), gram) < CLOSE
        total, right = total + gram, right + dense_target(problem, (i,)) @ gram
    found = dense("regmean", problem, off_diagonal=off_diagonal)
    assert distance(found @ total, right) < 1e-8


def test_regmean_looks_at_no_row_without_trigger() -> None:
    problem = random_problem()
    assert (
        distance(dense("regmean", replace(problem, recordings=problem.recordings[:-1])), dense("regmean", problem)) == 0
    )
    assert (
        distance(dense("ridge", replace(problem, recordings=problem.recordings[:-1])), dense("ridge", problem)) > 1e-3
    )


def test_gradient_fusion_comes_to_the_least_squares_solution_and_stays_in_the_column_space() -> None:
    problem = random_problem()
    recordings = problem.recordings[:-1]
    inputs = torch.cat([recording.inputs for recording in recordings])
    wanted = torch.cat([r.inputs @ dense_target(problem, r.active).mT for r in recordings])
    least = torch.linalg.lstsq(inputs, wanted).solution.mT
    assert distance(dense("gradient_fusion", problem, unet_iterations=500), least) < 1e-5
    few, _ = fused(inputs, wanted, 4)
    assert distance(few, least) > 1e-2, "control: four steps are not enough"
    assert distance(dense("gradient_fusion", problem, unet_iterations=4), few) < 1e-6


@each
def test_a_shared_space_holds_as_much_of_all_deltas_as_its_rank_can(problem: LayerProblem) -> None:
    """Beside dense SVDs of the deltas at the norm 1, side by side for the outputs, one above the other for the inputs."""
    deltas = [delta / delta.norm() for delta in deltas_of(problem) if delta.norm() > 0]
    rank = sum(int(torch.linalg.matrix_rank(delta)) for delta in deltas)
    left, right = shared_bases(problem, 0.5)
    outputs = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)[0]
    inputs = torch.linalg.svd(torch.cat(deltas, dim=0), full_matrices=False)[2].mT
    for found, expected in ((left, outputs), (right, inputs)):
        # of a basis only what it spans is certain
        size = min(math.ceil(0.5 * rank), *problem.present[0].shape)
        assert found.shape[1] == size
        assert distance(found @ found.mT, expected[:, :size] @ expected[:, :size].mT) < 1e-6


@each
def test_the_merge_in_a_shared_space_by_one_large_least_squares_problem(problem: LayerProblem) -> None:
    """The unknown `M` as one vector: `vec(X V M^T U^T)` on every recording, and the pull to the average beside it."""
    left, right = shared_bases(problem, 0.5)
    inside = [left.mT @ delta @ right for delta in deltas_of(problem)]
    unit = [left @ core @ right.mT for core in inside]
    effects = []
    for recording in problem.recordings:
        delta = sum((unit[i] for i in recording.own), torch.zeros_like(unit[0]))
        effects.append(float((recording.inputs @ delta.mT).square().sum(1).mean()))
    units = error_units(effects)
    rows, wanted, energy = [], [], 0.0
    for recording, own in zip(problem.recordings, units, strict=True):
        x = recording.inputs @ right * (recording.importance / len(recording.inputs) / own) ** 0.5
        energy = energy + float(x.square().sum())
        target = sum((inside[i] for i in recording.active), torch.zeros_like(inside[0]))
        rows.append(torch.kron(torch.eye(len(left.mT), dtype=x.dtype), x))
        wanted.append((x @ target.mT).mT.flatten())
    pull = (0.01 * energy / right.shape[1]) ** 0.5
    rows.append(pull * torch.eye(rows[0].shape[1], dtype=left.dtype))
    wanted.append(pull * (sum(inside) / len(inside)).flatten())
    core = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution.view(len(left.mT), -1)
    found = dense("shared_space", problem)
    assert distance(found, left @ core @ right.mT) < 1e-6
    if len(problem.present) > 1:
        assert distance(dense("ridge", problem), found) > 1e-3, "control: the whole space has another solution"


def test_a_shared_space_of_all_ranks_loses_nothing_of_a_lora_alone_and_half_of_them_half() -> None:
    problem = random_problem(ranks=(4,), background=False)
    whole = dense_target(problem, (0,))
    assert distance(dense("shared_space", problem, share=1.0), whole) < CLOSE
    half = merge("shared_space", problem, share=0.5)
    singular = torch.linalg.svdvals(whole)
    assert distance(half.factors.dense(), whole) == pytest.approx(float(singular[2:].norm() / singular.norm()))
    assert half.notes["space"] == 2
    assert half.notes["outside"] == pytest.approx(float(singular[2:].square().sum() / singular.square().sum()))
