"""The speed part, and the losses of the ablation."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from bench import speed
from bench.losses import info_nce, refining_with, triplet
from lib_loraclr.model import concatenate
from lib_loraclr.refining import batches
from lib_loraclr.solving import Terms, output_terms
from tests.solving.test_layer_problem import random_problem


def test_the_error_is_that_of_the_whole_matrices() -> None:
    problem = random_problem()
    delta = concatenate(problem.present).scaled(0.4)
    lost = effect = 0.0
    for i, recording in enumerate(problem.recordings[:-1]):
        target = problem.deltas[i].dense()
        lost += float((recording.inputs @ (delta.dense() - target).mT).square().sum())
        effect += float((recording.inputs @ target.mT).square().sum())
    assert speed.error(problem, delta) == pytest.approx(lost / effect)
    single = random_problem(ranks=(2,), background=False)
    assert speed.error(single, single.deltas[0]) == pytest.approx(0.0, abs=1e-20)


def test_an_exponent_is_found_again() -> None:
    assert speed.exponent([(x, 3 * x**1.7) for x in (1.0, 2.0, 5.0)]) == pytest.approx(1.7)


def test_every_solver_reaches_less_than_nothing_does(tmp_path: Path) -> None:
    asked = {"concepts": 2, "rows": 40, "rank": 4}
    found = {solver: speed.solve(solver, asked, (24, 32)) for solver in speed.SOLVERS}
    errors = {solver: figures["error"] for solver, figures in found.items()}
    assert all(error < 1 for error in errors.values()), errors
    assert errors["closed form"] < errors["LoRACLR as published"], "50 steps of 1e-4 from zero"
    assert all(figures["seconds"] > 0 for figures in found.values())


def test_tables_and_plots_are_written_and_a_second_run_measures_nothing(tmp_path: Path, monkeypatch) -> None:
    parser = argparse.ArgumentParser()
    speed.add_arguments(parser)
    asked = [
        "--shapes",
        "320x320",
        "--swept",
        "320x320",
        "--concepts",
        "2",
        "--alone",
        "3",
        "--rows",
        "16",
        "--rank",
        "8",
    ]
    arguments = parser.parse_args([*asked, "--solvers", "closed form"])
    arguments.full, arguments.results = False, tmp_path
    speed.main(arguments)
    text = (tmp_path / "speed.md").read_text("utf-8")
    assert "| closed form | rows | 8: " in text and "N = 3" in text
    assert "closed form" in (tmp_path / "speed-320x320.svg").read_text("utf-8")
    monkeypatch.setattr(speed, "solve", lambda *_: pytest.fail("measured again"))
    speed.main(arguments)


def prediction_between(share: float) -> tuple[torch.Tensor, ...]:
    """Arguments of `output_terms`: a prediction that has gone this share of the way to the other concept's."""
    generator = torch.Generator().manual_seed(0)
    target, other = (torch.randn(1, 2, 4, 8, generator=generator) for _ in range(2))
    prediction = (target + share * (other - target)).requires_grad_()
    return prediction, target, torch.ones(1, 2), other, torch.tensor([[True, True]])


@pytest.mark.parametrize("terms", [triplet, info_nce])
def test_other_losses_push_back_from_the_other_concept_and_keep_the_positive_term(terms) -> None:
    near, far = prediction_between(0.2), prediction_between(0.9)
    assert torch.equal(terms(*near)[0], output_terms(*near)[0])
    assert float(terms(*far)[1].detach()) > float(terms(*near)[1].detach())
    terms(*far)[1].sum().backward()
    assert float((far[0].grad * (far[3] - far[1])).sum()) > 0, "less the further it is from the other"
    alone = (*far[:4], torch.tensor([[False, False]]))
    assert float(terms(*alone)[1].detach()) == 0


def test_losses_by_hand() -> None:
    """At a share s of the way: d_p² = s², d_n² = (1 - s)², two windows."""
    share = 0.4
    arguments = prediction_between(share)
    gap = share**2 - (1 - share) ** 2
    assert float(triplet(*arguments)[1].detach()) == pytest.approx(2 * max(0.0, gap + 0.5), rel=1e-5)
    expected = 2 * float(torch.log1p(torch.exp(torch.tensor(gap / 0.5))))
    assert float(info_nce(*arguments)[1].detach()) == pytest.approx(expected, rel=1e-5)


def test_a_loss_is_in_place_only_inside() -> None:
    usual = batches.output_terms
    with pytest.raises(RuntimeError), refining_with(triplet):
        assert batches.output_terms is triplet
        one = torch.zeros(1, 1, 1, 1)
        row = batches.Batch(
            ("",), one, one[0, 0, 0], one, torch.ones(1, 1), one + 1, torch.ones(1, 1, dtype=torch.bool), one[0, 0, 0]
        )
        _, found = row.compare(lambda prompts, x, t: one + 0.5, Terms())
        assert float(found) == pytest.approx(0.5), "as far from one as from the other, which is the triplet's margin"
        raise RuntimeError
    assert batches.output_terms is usual is output_terms
