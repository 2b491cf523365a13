"""A change beside a layer instead of in its weight: the same output and gradients, wherever it is less work."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib_loraclr.model import side_branch, substitution
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.model.side_branch import has_branches, is_cheaper
from lib_loraclr.model.substitution import Layer
from lib_loraclr.model.substitution import substituted as substituted_on

substituted = partial(substituted_on, device=torch.device("cpu"))

CLOSE = 1e-6  # relative, where a changed weight is rounded to fp32

CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1": {"kernel_size": 1},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "same, dilated": {"kernel_size": 3, "padding": "same", "dilation": 2},
}


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).detach().norm()) <= CLOSE * float(expected.detach().norm())


def modules() -> list[tuple[str, nn.Module, Tensor]]:
    made = [("linear", nn.Linear(5, 7), torch.randn(2, 4, 5))]
    for name, sizes in CONVOLUTIONS.items():
        module, x = nn.Conv2d(3, 6, **sizes), torch.randn(2, 3, 8, 6)
        made += [
            (name, module, x),
            (f"{name}, channels last", deepcopy(module), x.to(memory_format=torch.channels_last)),
        ]
    made.append(("one picture", nn.Conv2d(3, 6, 1), torch.randn(3, 8, 6)))
    return [(name, module.double().requires_grad_(False), x.double()) for name, module, x in made]


def delta_of(module: nn.Module, *, rank: int = 2, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = Layer.of(module).shape
    up = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
    down = torch.randn(rank, d_in, generator=generator, dtype=torch.float64)
    return Factors(up.requires_grad_(), down.requires_grad_())


def choose(monkeypatch: pytest.MonkeyPatch, branches: bool) -> None:
    monkeypatch.setattr(substitution, "is_cheaper", lambda *_: branches)


def calls_of_branch(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    called, real = [], side_branch.with_branch

    def note(module: nn.Module, *rest: object) -> Tensor:
        called.append(module)
        return real(module, *rest)

    monkeypatch.setattr(substitution, "with_branch", note)
    return called


def changed(module: nn.Module, delta: Factors) -> nn.Module:
    """The second way: a copy whose weight is really another."""
    copy = deepcopy(module)
    copy.weight += delta.dense().detach().view_as(copy.weight)
    return copy.requires_grad_(True)


@pytest.mark.parametrize(("name", "module", "x"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_output_and_gradients_are_those_of_a_changed_weight(
    name: str, module: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, True)
    called = calls_of_branch(monkeypatch)
    delta = delta_of(module)
    copy, given = changed(module, delta), x.clone().requires_grad_()
    expected = copy(x)
    expected.square().sum().backward()
    with substituted({"a": Layer.of(module)}, {"a": delta}):
        found = module(given)
        found.square().sum().backward()
    assert found.stride() == module(x).stride(), "as the layer's own, for what comes after it"
    dense = copy.weight.grad.flatten(1)
    assert_near(found, expected)
    assert_near(delta.up.grad, dense @ delta.down.detach().mT)
    assert_near(delta.down.grad, delta.up.detach().mT @ dense)
    with substituted({"a": Layer.of(module)}, {"a": delta}), torch.no_grad():
        assert_near(module(x), expected)
    assert called == [module], "with gradients only: without, weights are rounded as whoever loads the file rounds them"


def test_what_it_costs_decides() -> None:
    """Against the multiplications that torch itself counts."""

    def counted(module: nn.Module, delta: Factors, x: Tensor, branches: bool) -> int:
        with pytest.MonkeyPatch.context() as patch:
            choose(patch, branches)
            # the layer is somewhere in a model, whose gradients go through it
            with substituted({"a": Layer.of(module)}, {"a": delta}), FlopCounterMode(display=False) as counter:
                module(x.clone().requires_grad_()).sum().backward()
        return counter.get_total_flops()

    decided = set()
    for make, shape, rank in (
        (lambda: nn.Linear(32, 32), (200, 32), 2),
        (lambda: nn.Linear(32, 32), (200, 32), 12),
        (lambda: nn.Linear(32, 32), (3, 32), 12),
        (lambda: nn.Conv2d(16, 16, 3, padding=1), (1, 16, 12, 12), 2),
        (lambda: nn.Conv2d(16, 16, 3, padding=1), (1, 16, 12, 12), 8),
        (lambda: nn.Conv2d(16, 16, 3, stride=2, padding=1), (2, 16, 12, 12), 4),
    ):
        module, x = make().requires_grad_(False), torch.randn(shape)
        delta = Factors(*(t.detach().float().requires_grad_() for t in vars(delta_of(module, rank=rank)).values()))
        ways = {branches: counted(module, delta, x, branches) for branches in (True, False)}
        assert is_cheaper(module, x, delta) == (ways[True] < ways[False])
        decided.add(is_cheaper(module, x, delta))
    assert decided == {True, False}, "control: both are tried"


def test_no_branch_beside_what_does_not_multiply_its_input_with_one_weight() -> None:
    assert not has_branches(nn.Conv2d(4, 4, 1, groups=2))
    assert not has_branches(nn.LayerNorm(4))
    assert not has_branches(nn.MultiheadAttention(4, 2))


def test_a_change_of_some_channels_or_rows_has_no_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, True)
    called = calls_of_branch(monkeypatch)
    module = nn.Conv2d(9, 3, 1).double().requires_grad_(False)
    x, layer = torch.randn(1, 9, 2, 2, dtype=torch.float64), Layer(module, module, channels=4)
    delta = Factors(*(torch.ones(s, dtype=torch.float64).requires_grad_() for s in ((3, 1), (1, 4))))
    expected = deepcopy(module)
    expected.weight[:, :4] += 1
    with substituted({"a": layer}, {"a": delta}):
        assert_near(module(x), expected(x))
    assert called == []


def test_a_small_change_of_bf16_weights_is_not_rounded_away_while_it_is_learnt() -> None:
    module = nn.Linear(2, 1, bias=False).bfloat16().requires_grad_(False)
    module.weight.fill_(1.0)
    delta = Factors(torch.full((1, 1), 2.0**-12, requires_grad=True), torch.tensor([[1.0, 0.0]], requires_grad=True))
    x = torch.tensor([[1.0, -1.0]]).bfloat16()
    with substituted({"a": Layer.of(module)}, {"a": delta}):
        assert module(x).item() == 2.0**-12
        with torch.no_grad():
            assert float(module(x)) == 0, "control: 1 + 2^-12 in eight bits is 1"


@pytest.mark.parametrize("inner_branches", [True, False])
def test_of_contexts_inside_each_other_the_inner_one_counts(inner_branches: bool, monkeypatch: pytest.MonkeyPatch):
    module = nn.Linear(5, 7).double().requires_grad_(False)
    x, layers = torch.randn(3, 5, dtype=torch.float64), {"a": Layer.of(module)}
    outer, inner = delta_of(module, seed=1), delta_of(module, seed=2, rank=3)
    monkeypatch.setattr(substitution, "is_cheaper", lambda _, x, delta: (delta.rank == 3) == inner_branches)
    of_inner, of_outer = changed(module, inner)(x), changed(module, outer)(x)
    with substituted(layers, {"a": outer}):
        with substituted(layers, {"a": inner}):
            assert_near(module(x), of_inner)
        assert_near(module(x), of_outer)


def test_nothing_is_left_of_a_call_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, True)
    module = nn.Linear(5, 7).double().requires_grad_(False)
    layers, delta = {"a": Layer.of(module)}, delta_of(module)
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = changed(module, delta)(x)
    with substituted(layers, {"a": delta}):
        with pytest.raises(RuntimeError):
            module(x[:, :4])
        assert "weight" not in module.__dict__
        with torch.no_grad():  # a branch of the call before, if it had been left, would come out here
            assert_near(module(x), expected)
    assert "weight" not in module.__dict__ and not module._forward_hooks and not module._forward_pre_hooks


def on_another_device(delta: Factors, moved: list[torch.device]) -> Factors:
    class Elsewhere(Factors):
        def to(self, device: torch.device) -> Factors:
            moved.append(device)
            return delta

    return Elsewhere(delta.up, delta.down)


def test_factors_are_copied_to_the_device_once_for_all_calls() -> None:
    """To that of the host: its weights may be elsewhere until they are used."""
    module, moved = nn.Linear(5, 7).double().requires_grad_(False), []
    with substituted({"a": Layer.of(module)}, {"a": on_another_device(delta_of(module), moved)}):
        for _ in range(2):
            module(torch.ones(1, 5, dtype=torch.float64))
    assert moved == [torch.device("cpu")]
