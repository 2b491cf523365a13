"""What each of our own methods, and the paper's, comes to; the contract that all keep stands in test_methods.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib_loraclr.model.low_rank import Factors
from lib_loraclr.solving.layer_problem import LayerProblem, Recording
from lib_loraclr.solving.methods import METHODS
from lib_loraclr.solving.methods.contrastive import STEPS, ContrastiveOptions, refinement_options
from lib_loraclr.solving.methods.paper import PaperObjective, PaperOptions
from tests.solving.test_layer_problem import dense_gram, dense_target, random_problem, slow_units
from tests.solving.test_methods import CLOSE, PROBLEMS, dense, distance, merge


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_weighted_sum_is_the_dense_sum_and_average_its_share(problem: LayerProblem) -> None:
    everyone = tuple(range(len(problem.deltas)))
    total = dense_target(problem, everyone)
    assert distance(dense("weighted_sum", problem), total) < CLOSE
    assert distance(dense("average", problem), total / len(everyone)) < CLOSE


@pytest.mark.parametrize("strength", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_ridge_solves_the_dense_normal_equations(problem: LayerProblem, strength: float) -> None:
    """`ΔW (S + λ) = Σ c_i D_i G_i / e_i + λ D̄`, with the whole matrices."""
    gram, d_in = dense_gram(problem), problem.present[0].shape[1]
    pull = strength * gram.trace() / d_in
    mean = dense_target(problem, tuple(range(len(problem.deltas)))) / len(problem.deltas)
    right = pull * mean
    for recording, unit in zip(problem.recordings, slow_units(problem), strict=True):
        own = recording.importance / len(recording.inputs) / unit * recording.inputs.mT @ recording.inputs
        right = right + dense_target(problem, recording.active) @ own
    expected = torch.linalg.solve(gram + pull * torch.eye(d_in, dtype=torch.float64), right.mT).mT
    # the ridge of 1e-4 leaves a condition number of 1e5
    assert distance(dense("ridge", problem, ridge=strength), expected) < 1e-8


def with_strengths(*strengths: float) -> LayerProblem:
    """Two concepts of rank 16 on the same inputs but for a small part of their own, so that the merge must give way: equal rows,
    unequal effects."""
    generator = torch.Generator().manual_seed(5)
    rows, d_out, d_in = 64, 48, 40

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    deltas = tuple(Factors(draw(d_out, 16) * strength, draw(16, d_in)) for strength in strengths)
    shared = draw(rows, d_in)
    recordings = tuple(
        Recording(shared + 0.7 * draw(rows, d_in), (i,), 1.0, ((1 - i,),)) for i in range(len(strengths))
    )
    return LayerProblem("lora_unet_layer", deltas, recordings)


def errors_of(problem: LayerProblem, delta: Tensor) -> list[float]:
    """Of each concept on its own rows, relative to its own effect; 1 is where nothing of it is left."""
    results = []
    for recording in problem.recordings:
        wanted = recording.inputs @ dense_target(problem, recording.active).mT
        results.append(distance(recording.inputs @ delta.mT, wanted))
    return results


@pytest.mark.parametrize("weak", [0.1, 0.05])
@pytest.mark.parametrize("name", ["ridge", "contrastive"])
def test_a_weak_concept_is_kept_beside_a_strong_one(monkeypatch: pytest.MonkeyPatch, name: str, weak: float) -> None:
    """Effects are squared: a tenth of the strength would have a hundredth of the weight, were there one unit for all."""
    problem = with_strengths(1.0, weak)
    effects = problem.units()
    assert max(errors_of(problem, dense(name, problem))) < 1
    monkeypatch.setattr(LayerProblem, "units", lambda self: [effects[0]] * len(self.recordings))
    assert errors_of(problem, dense(name, problem))[1] > 2, "control: in one unit for all nothing of it is left"


def test_ridge_says_how_it_solved() -> None:
    notes = [merge("ridge", PROBLEMS[name]).notes for name in ("usual", "fewer rows than inputs")]
    assert [note["dual"] for note in notes] == [False, True]
    assert all(note["repairs"] == 0 and note["ridge"] > 0 for note in notes)


def test_ridge_keeps_concepts_whose_inputs_have_nothing_in_common() -> None:
    """Each keeps its effect on its own inputs, where the plain sum adds the others' to it."""
    problem = random_problem(ranks=(2, 2), size=(12, 20), background=False)
    halves = [torch.zeros(20, dtype=torch.float64).index_fill(0, half, 1.0) for half in torch.arange(20).chunk(2)]
    own = tuple(
        Recording(recording.inputs * half, recording.active)
        for recording, half in zip(problem.recordings, halves, strict=True)
    )
    problem = replace(problem, recordings=own)
    for recording in own:
        wanted = recording.inputs @ dense_target(problem, recording.active).mT
        assert distance(recording.inputs @ dense("ridge", problem, ridge=1e-10).mT, wanted) < 1e-6
        assert distance(recording.inputs @ dense("weighted_sum", problem).mT, wanted) > 0.1


def test_contrastive_without_steps_is_the_closed_form_at_its_start() -> None:
    problem = random_problem()
    start = dense("ridge", problem, ridge=0.05)
    assert distance(dense("contrastive", problem, ridge=0.05, layer_steps=0), start) < CLOSE
    assert distance(dense("contrastive", problem, ridge=0.05), start) > 1e-3


def test_contrastive_without_its_negative_term_stays_where_the_closed_form_is_already_right() -> None:
    """Fewer rows than inputs: every concept can be had at once, so that the positive term is zero at the start."""
    problem = PROBLEMS["fewer rows than inputs"]
    start = dense("ridge", problem, ridge=1e-9)
    assert distance(dense("contrastive", problem, ridge=1e-9, negative=0.0), start) < 1e-6
    assert distance(dense("contrastive", problem, ridge=1e-9, margin=2.0), start) > 1e-3


def test_a_strong_lambda_delta_holds_contrastive_at_its_start() -> None:
    problem = random_problem()
    start = dense("ridge", problem)
    moved = [
        distance(dense("contrastive", problem, lambda_delta=pull, layer_steps=50), start) for pull in (0.001, 10.0)
    ]
    assert moved[1] < 0.1 * moved[0]


def test_the_negative_term_moves_rows_away_from_the_nearest_other_concept() -> None:
    problem = random_problem()
    active = [
        merge("contrastive", problem, negative=weight, layer_steps=100).notes["active_hinges"] for weight in (0, 10)
    ]
    assert active[1] < active[0]


def test_without_steps_it_is_the_closed_form() -> None:
    problem = random_problem()
    assert torch.equal(dense("contrastive", problem, layer_steps=0), dense("ridge", problem))
    assert "active_hinges" not in merge("contrastive", problem, layer_steps=0).notes
    assert not torch.equal(dense("contrastive", problem, layer_steps=1), dense("ridge", problem)), "control"


def test_efforts_say_what_is_done_at_the_output() -> None:
    assert refinement_options(ContrastiveOptions(effort="layers", steps=10), 4) is None
    assert ContrastiveOptions().effort == "balanced"
    for effort in ("fast", "balanced", "thorough"):
        counts = (1, 2, 3, 4, 12)
        steps = [refinement_options(ContrastiveOptions(effort=effort), count).steps for count in counts]
        assert steps == [STEPS[effort] * counted for counted in (1, 3, 3, 4, 12)], (
            "two have to be told apart as three have"
        )
        few = refinement_options(ContrastiveOptions(effort=effort), 2)
        assert few.terms == ContrastiveOptions().terms
    assert STEPS["thorough"] > STEPS["balanced"] > STEPS["fast"] > STEPS["layers"] == 0
    assert refinement_options(ContrastiveOptions(steps=7), 12).steps == 7
    drawn = {effort: refinement_options(ContrastiveOptions(effort=effort), 4).rollouts for effort in list(STEPS)[1:]}
    assert drawn == {"fast": 0, "balanced": 4, "thorough": 4}
    assert refinement_options(ContrastiveOptions(effort="fast", rollouts=2), 4).rollouts == 2
    assert refinement_options(ContrastiveOptions(rollouts=0), 4).rollouts == 0
    assert refinement_options(ContrastiveOptions(scenes=0), 4).rollouts == 0, "of what is not learnt from none is drawn"
    assert all(
        METHODS[name].refinement(METHODS[name].options(), 4) is None for name in METHODS if name != "contrastive"
    )


def published_loss(problem: LayerProblem, delta: Tensor, options: PaperOptions) -> tuple[float, list[float]]:
    """The second way: eq. 3 to 6 as they stand, with the whole outputs `Y`; and the hinges."""
    concepts = [recording for recording in problem.recordings if recording.active]
    wanted = [r.inputs @ (problem.weight + dense_target(problem, r.active)).mT for r in concepts]
    merged = [r.inputs @ (problem.weight + delta).mT for r in concepts]
    total, hinges = 0.0, []
    for i, own in enumerate(wanted):
        positive = float((own - merged[i]).norm())
        nearest = min(float((own - other).norm()) for j, other in enumerate(merged) if j != i)
        hinges.append(max(0.0, options.margin - nearest))
        total += positive**2 + options.mse * positive**2 / own.numel() + hinges[-1] ** 2
    return total / len(concepts) + options.lambda_delta * float(delta.norm()), hinges


def few_rows(problem: LayerProblem) -> LayerProblem:
    """As many in each recording."""
    return replace(problem, recordings=tuple(replace(r, inputs=r.inputs[:4]) for r in problem.recordings))


def test_the_papers_loss_is_the_published_formula() -> None:
    problem = few_rows(random_problem(scale=0.05, rows=4))
    delta = dense_target(problem, (0,)) * 0.5
    far, _ = published_loss(problem, delta, PaperOptions(margin=0.0))
    # a margin between the nearest others: some hinges act, some do not
    _, hinges = published_loss(problem, delta, PaperOptions(margin=1e6))
    margin = 1e6 - sorted(hinges)[len(hinges) // 2]
    options = PaperOptions(margin=margin + 1e-3, lambda_delta=0.01, mse=0.1)
    expected, hinges = published_loss(problem, delta, options)
    assert min(hinges) == 0 < max(hinges)
    loss, acting = PaperObjective(problem, options)(delta)
    assert float(loss) == pytest.approx(expected, rel=CLOSE)
    assert acting == sum(h > 0 for h in hinges) / len(hinges)
    assert expected != pytest.approx(far, rel=CLOSE), "control: the hinges are in it"
    without = PaperObjective(replace(problem, weight=torch.zeros_like(problem.weight)), options)(delta)[0]
    assert float(without) != pytest.approx(expected, rel=CLOSE), "control: so are the base outputs"


def test_the_papers_result_is_the_best_iterate_by_adamw() -> None:
    """Steps far too long: the last iterate is worse than the first."""
    problem = few_rows(random_problem(scale=0.05, rows=4))
    options = PaperOptions(iterations=6, learning_rate=0.5)
    delta = torch.zeros_like(problem.weight, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.5, weight_decay=1e-4)
    losses, points = [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss, _ = PaperObjective(problem, options)(delta)
        losses.append(float(loss.detach()))
        points.append(delta.detach().clone())
        loss.backward()
        optimizer.step()
    best = losses.index(min(losses))
    assert best < 5, "control"
    found = dense("paper", problem, iterations=6, learning_rate=0.5)
    assert torch.allclose(found, points[best], rtol=1e-6, atol=1e-9)


def test_the_papers_method_reaches_a_lora_if_it_is_given_the_steps() -> None:
    problem = random_problem(ranks=(2,), background=False)
    wanted = problem.deltas[0].dense()
    options = {"learning_rate": 0.01, "lambda_delta": 0.0}
    assert distance(dense("paper", problem, iterations=2000, **options), wanted) < 0.01
    assert distance(dense("paper", problem, iterations=20, **options), wanted) > 0.5
