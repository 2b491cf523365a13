"""Gradients of a loss that was scaled are those of the loss, and a step that overflowed is left out."""

from __future__ import annotations

import pytest
import torch

from lib_loraclr.refining.loss_scale import LossScale


@pytest.mark.parametrize("factor", [1e-9, 1e-4])
def test_small_gradients_survive_half_precision(factor: float) -> None:
    x = torch.ones(3, requires_grad=True)
    scale = LossScale(enabled=True)
    # through fp16: what falls below 6e-8 there is zero
    ((x.half().float() * factor).sum() * scale.value).backward()
    assert scale.settle(x.grad)
    torch.testing.assert_close(x.grad, torch.full((3,), factor), rtol=1e-2, atol=0)
    x.grad, none = None, LossScale(enabled=False)
    ((x.half().float() * factor).sum() * none.value).backward()
    assert none.settle(x.grad)
    assert bool((x.grad == 0).all()) == (factor < 6e-8), "control: without a scale they do not"


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_step_that_overflowed_is_left_out_and_the_next_is_scaled_less(bad: float) -> None:
    scale = LossScale(enabled=True)
    first = scale.value
    assert not scale.settle(torch.tensor([1.0, bad, 2.0]))
    assert scale.value < first
    gradients = torch.full((3,), scale.value)
    assert scale.settle(gradients)
    assert gradients.tolist() == [1.0, 1.0, 1.0]


def test_in_full_precision_nothing_is_touched() -> None:
    gradients, scale = torch.tensor([torch.inf, 1.0]), LossScale(enabled=False)
    assert (scale.value, scale.settle(gradients), gradients.tolist()) == (1.0, True, [torch.inf, 1.0])
