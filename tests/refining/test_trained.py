"""Factors side by side in memory: the same gradients as of factors one by one, and what pulls them back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from bench.refinement_step import Counting
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.model.substitution import Layer, substituted
from lib_loraclr.refining.anchor import Anchor
from lib_loraclr.refining.loss_scale import LossScale
from lib_loraclr.refining.optimizers import Muon
from lib_loraclr.refining.trained import TrainedFactors, balanced_in_fp32, needs_copies

#: two of one shape and two of others; one of them is a convolution
MODULES = {"a": (7, 5), "b": (4, 6), "c": (7, 5)}


class Host:
    """What of a host is asked: its layers, and to run with factors."""

    device = torch.device("cpu")

    def __init__(self, precisions: Mapping[str, torch.dtype]) -> None:
        torch.manual_seed(0)
        self.modules = {key: nn.Linear(columns, rows) for key, (rows, columns) in MODULES.items()}
        self.modules["d"] = nn.Conv2d(3, 4, 3, padding=1)
        for key, module in self.modules.items():
            module.to(precisions.get(key, torch.float32)).requires_grad_(False)

    def layers(self) -> dict[str, Layer]:
        return {key: Layer.of(module) for key, module in self.modules.items()}

    def loss(self, factors: Mapping[str, Factors]) -> Tensor:
        generator, total = torch.Generator().manual_seed(1), torch.zeros(())
        with substituted(self.layers(), factors, self.device):
            for module in self.modules.values():
                shape = (2, 3, 4, 4) if isinstance(module, nn.Conv2d) else (3, module.in_features)
                x = torch.randn(shape, generator=generator).to(module.weight.dtype)
                total = total + module(x).float().square().sum()
        return total


def start(host: Host, *, rank: int = 2, seed: int = 2) -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: Factors(
            torch.randn(layer.shape[0], rank, generator=generator),
            torch.randn(rank, layer.shape[1], generator=generator),
        )
        for key, layer in host.layers().items()
    }


def one_by_one(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """The slow second way: leaves of their own, in fp32."""
    even = {key: balanced_in_fp32(own) for key, own in factors.items()}
    return {key: Factors(f.up.requires_grad_(), f.down.requires_grad_()) for key, f in even.items()}


def gradients_of(trained: TrainedFactors) -> dict[str, Factors]:
    return {
        key: Factors(up, down)
        for stack in trained.stacks
        for key, up, down in zip(stack.keys, stack.up.grad, stack.down.grad, strict=True)
    }


def multiplies_halves() -> bool:
    """Not every torch does on a CPU."""
    try:
        torch.ones(1, 1).half() @ torch.ones(1, 1).half()
    except RuntimeError:
        return False
    return True


HALVES = {
    "fp32": ({}, 1e-5),
    "fp16": (dict.fromkeys("abcd", torch.float16), 5e-3),
    "bf16": (dict.fromkeys("abcd", torch.bfloat16), 5e-2),
    "a text encoder in fp32": ({"a": torch.float16, "d": torch.float16}, 5e-3),
}


@pytest.mark.parametrize(("precisions", "close"), HALVES.values(), ids=HALVES)
def test_gradients_are_those_of_factors_one_by_one(precisions: Mapping[str, torch.dtype], close: float) -> None:
    """Of two passes, summed; a control has those of one."""
    if torch.float16 in precisions.values() and not multiplies_halves():
        pytest.skip("this torch does not multiply halves on a CPU")
    host = Host(precisions)
    trained, expected = TrainedFactors(start(host), host, copies=True), one_by_one(start(host))
    passes = []
    for _ in range(2):
        host.loss(trained.applied).backward()
        trained.gather()
        host.loss(expected).backward()
        passes.append(trained.gradients.clone())
    for key, found in gradients_of(trained).items():
        for side in ("up", "down"):
            own, other = getattr(found, side), getattr(expected[key], side).grad
            assert float((own - other).norm()) <= close * float(other.norm())
    torch.testing.assert_close(passes[1], 2 * passes[0], rtol=1e-3, atol=1e-3 * float(passes[0].abs().max()))
    trained.clear()
    assert not trained.gradients.any() and not any(f.up.grad.any() for f in trained.applied.values())


def test_on_a_cpu_factors_stay_in_fp32() -> None:
    """CPUs multiply halves slowly, and some torch does not at all."""
    host = Host(HALVES["fp16"][0])
    assert not needs_copies(host)
    assert all(f.up.dtype == torch.float32 for f in TrainedFactors(start(host), host).applied.values())


def test_rank_that_factors_do_not_have_is_left_out() -> None:
    """A bias has a rank of 1, and a matrix of six columns at most six."""
    host = Host({})
    given = start(host) | {
        "b": Factors(torch.ones(4, 9), torch.ones(9, 6)),
        "a": Factors(torch.ones(7, 3), torch.ones(3, 5)),
    }
    trained = TrainedFactors(given, host)
    for key, own in trained.snapshot().items():
        torch.testing.assert_close(own.dense(), given[key].dense(), rtol=1e-4, atol=1e-4)
    assert trained.factors["b"].rank <= 6


def test_a_pass_that_did_not_come_to_its_end_leaves_nothing() -> None:
    host = Host(HALVES["bf16"][0])
    trained = TrainedFactors(start(host), host, copies=True)
    host.loss(trained.applied).backward()
    trained.clear()
    trained.gather()
    assert not trained.gradients.any()


@pytest.mark.parametrize(("precision", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_model_runs_with_what_was_learnt(precision: torch.dtype, close: float) -> None:
    host = Host(dict.fromkeys("abcd", precision))
    trained = TrainedFactors(start(host), host, copies=True)
    before = float(host.loss(trained.applied))
    trained.values.mul_(2)
    trained.refresh()
    doubled = {key: Factors(f.up.clone(), f.down.clone()) for key, f in trained.factors.items()}
    assert float(host.loss(trained.applied)) == pytest.approx(float(host.loss(doubled)), rel=close)
    assert float(host.loss(trained.applied)) != pytest.approx(before, rel=1e-1), "control: that is something else"
    assert all(f.up.dtype == f.down.dtype == precision for f in trained.applied.values())


def test_they_begin_balanced_and_a_snapshot_stays_as_it_was() -> None:
    host = Host({"a": torch.float16})
    given = start(host)
    trained = TrainedFactors(given, host, copies=True)
    snapshot = trained.snapshot()
    trained.values.zero_()
    assert list(trained.factors) and set(snapshot) == set(given) == set(trained.applied)
    for key, own in snapshot.items():
        torch.testing.assert_close(own.dense(), given[key].dense(), rtol=1e-4, atol=1e-4)
        assert float(own.up.norm()) == pytest.approx(float(own.down.norm()), rel=1e-3)
        assert own.up.dtype == torch.float32 and own.up.untyped_storage().nbytes() == own.up.nbytes


def anchored(host: Host, strength: float) -> tuple[TrainedFactors, Anchor, dict[str, Factors]]:
    """Factors away from where they began."""
    trained = TrainedFactors(start(host), host, copies=True)
    begun, anchor = trained.snapshot(), Anchor(trained, strength)
    trained.values.add_(0.1 * torch.randn(trained.values.shape, generator=torch.Generator().manual_seed(3)))
    return trained, anchor, begun


def test_the_penalty_and_its_gradient_are_those_of_the_dense_matrices() -> None:
    host = Host({})
    trained, anchor, begun = anchored(host, 0.3)
    twins = {
        key: Factors(f.up.clone().requires_grad_(), f.down.clone().requires_grad_())
        for key, f in trained.factors.items()
    }
    value = anchor.pull()
    distance = sum((twins[key].dense() - begun[key].dense()).square().sum() for key in begun)
    dense = 0.3 * distance / sum(f.dense().square().sum() for f in begun.values())
    dense.backward()
    assert value.item() == pytest.approx(dense.item(), rel=1e-4)
    for key, found in gradients_of(trained).items():
        torch.testing.assert_close(found.up, twins[key].up.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.down, twins[key].down.grad, rtol=1e-4, atol=1e-6)


def test_the_penalty_adds_to_the_gradient_that_is_there() -> None:
    host = Host({})
    trained, anchor, _ = anchored(host, 0.3)
    anchor.pull()
    plain = trained.gradients.clone()
    trained.gradients.fill_(1.0)
    anchor.pull()
    torch.testing.assert_close(trained.gradients, 1 + plain)


def test_there_is_no_pull_at_the_start_or_without_a_weight() -> None:
    host = Host({})
    trained, anchor, _ = anchored(host, 0.0)
    assert anchor.pull().item() == 0.0 and not trained.gradients.any()
    unmoved = TrainedFactors(start(host), host, copies=True)
    assert Anchor(unmoved, 0.3).pull().item() == pytest.approx(0, abs=1e-6)
    assert float(unmoved.gradients.abs().max()) < 1e-6


def asked_between_passes(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """What becomes of the gradients of a step in half precision."""
    monkeypatch.setattr(f"{__name__}.MODULES", {f"layer {k}": (7, 5) for k in range(layers)})
    host = Host({f"layer {k}": torch.float16 for k in range(layers)})
    trained = TrainedFactors(start(host), host, copies=True)
    anchor, scale = Anchor(trained, 0.3), LossScale(enabled=True)
    optimizer = Muon([tensor for stack in trained.stacks for tensor in (stack.up, stack.down)], lr=0.1)
    with Counting() as counting:
        trained.gather()
        anchor.pull()
        assert scale.settle(trained.gradients)
        optimizer.step()
        trained.refresh()
        trained.clear()
    return counting.asked


def test_what_a_device_is_asked_for_does_not_grow_with_the_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = asked_between_passes(3, monkeypatch), asked_between_passes(30, monkeypatch)
    assert few == many > 20
