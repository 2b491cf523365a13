"""Muon: against an SVD, against torch's own, and on a problem whose minimum is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lib_loraclr.refining.optimizers import Muon, orthogonalized

#: within which five steps of the iteration take singular values (Jordan et al., "Muon")
BAND = (0.6, 1.25)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def polar(matrix: Tensor) -> Tensor:
    """`U V^T`: the same matrix with its singular values 1."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(8, 8), (64, 4), (4, 64), (320, 16), (5, 7)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_singular_values_are_taken_near_to_one_and_their_directions_stay(shape: tuple[int, int], scale: float) -> None:
    matrix = draw(*shape) * torch.linspace(1, 0.2, shape[1])
    direction = orthogonalized(scale * matrix[None])[0]
    assert direction.shape == shape
    inside = torch.linalg.svdvals(direction)
    known = torch.linalg.svdvals(matrix) / matrix.norm() > 0.05  # the smallest need more steps than five
    assert ((inside > BAND[0]) & (inside < BAND[1]))[known].all()
    # what the iteration makes has the singular vectors of what it was given
    symmetric = polar(matrix).mT @ direction if shape[0] >= shape[1] else direction @ polar(matrix).mT
    assert float((symmetric - symmetric.mT).norm()) < 1e-3 * float(symmetric.norm())
    assert float((direction - polar(matrix)).norm() / polar(matrix).norm()) < 0.35
    assert torch.linalg.svdvals(matrix).max() > 1.3 * torch.linalg.svdvals(matrix).min(), "control: they were not one"


def test_what_is_zero_stays_zero() -> None:
    assert not orthogonalized(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_matrices_of_a_stack_are_handled_as_if_one_by_one(shape: tuple[int, int]) -> None:
    batch = draw(6, 12, 5)
    alone = torch.stack([orthogonalized(matrix[None])[0] for matrix in batch])
    torch.testing.assert_close(orthogonalized(batch), alone, rtol=1e-4, atol=1e-5)
    together = draw(2, *shape)
    apart = [together[k : k + 1].clone() for k in range(2)]
    optimizers = [Muon([together], lr=0.1), *(Muon([matrix], lr=0.1) for matrix in apart)]
    for step in range(3):
        together.grad = draw(2, *shape, seed=10 * step)
        for k, matrix in enumerate(apart):
            matrix.grad = together.grad[k : k + 1].clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
@pytest.mark.parametrize("shape", [(16, 16), (40, 8), (8, 40)])
def test_its_steps_are_those_of_torchs_own(shape: tuple[int, int]) -> None:
    """In bfloat16, as torch iterates, and so no closer than that."""
    start = draw(*shape)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    mine = Muon([stack := ours.detach()[None]], lr=0.02, momentum=0.9)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.9, weight_decay=0.0, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        before = ours.detach().clone(), theirs.detach().clone()
        theirs.grad = draw(*shape, seed=step + 5)
        stack.grad = theirs.grad.clone()[None]
        mine.step()
        reference.step()
        moved, expected = ours.detach() - before[0], theirs.detach() - before[1]
        assert float((moved - expected).norm()) < 0.05 * float(expected.norm())
    forgetful = Muon([other := start.clone()[None]], lr=0.02, momentum=0.0)
    for step in range(4):
        other.grad = draw(1, *shape, seed=step + 5)
        forgetful.step()
    assert float((other[0] - theirs).norm()) > 0.3 * float((theirs - start).norm()), "control: the momentum is seen"


def test_a_step_is_as_long_as_adamws() -> None:
    """Root mean square of a step, a fifth of the learning rate per direction (Liu et al., section 2.2)."""
    for shape in ((64, 8), (8, 64), (32, 32)):
        matrix = torch.zeros(1, *shape)
        matrix.grad = draw(1, *shape)
        Muon([matrix], lr=0.01).step()
        assert float(matrix.square().mean().sqrt()) == pytest.approx(0.002, rel=0.25)


def test_it_reaches_the_minimum_of_least_squares_in_two_factors() -> None:
    """`min ||U D X - T||`, ill conditioned, as a merge's factors are; plain gradient steps of any length are slower."""
    wanted = draw(12, 3) @ (torch.tensor([1.0, 0.1, 0.01])[:, None] * draw(3, 10, seed=1))
    inputs = draw(10, 40, seed=2)

    def run(make, steps: int) -> float:
        up, down = (0.3 * draw(1, 12, 3, seed=3)).requires_grad_(), (0.3 * draw(1, 3, 10, seed=4)).requires_grad_()
        optimizer = make([up, down])
        highest = optimizer.param_groups[0]["lr"]
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = highest * (1 - step / steps)
            optimizer.zero_grad()
            loss = ((up @ down - wanted) @ inputs).square().sum()
            loss.backward()
            optimizer.step()
        return float(((up @ down - wanted) @ inputs).square().sum().detach() / (wanted @ inputs).square().sum())

    assert run(lambda parts: Muon(parts, lr=0.2), 150) < 1e-5
    rates = (1e-5, 3e-5, 1e-4, 3e-4)
    plain = [run(lambda parts, rate=rate: torch.optim.SGD(parts, lr=rate, momentum=0.9), 150) for rate in rates]
    assert min(value for value in plain if math.isfinite(value)) > 5e-5, "control: several times as far"


def test_what_has_no_gradient_is_left() -> None:
    matrix, other = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
    other.grad = draw(1, 2, 3)
    Muon([matrix, other], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(1, 2, 3)) and not torch.equal(other, torch.ones(1, 2, 3))
