"""Recording: a uniform sample, the right rows, and no trace left in the model."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from lib_loraclr.model.host import Host
from lib_loraclr.model.substitution import Layer
from lib_loraclr.recording.input_rows import Recorder, Reservoir, input_rows, record_inputs, shared_inputs

#: recordings are in half precision
HALF = 2e-3


def numbered(count: int, first: int = 0) -> Tensor:
    """Rows that say which they are, `[n, 1]`."""
    return torch.arange(first, first + count).float()[:, None]


def offer(reservoir: Reservoir, batches: list[int]) -> list[int]:
    """Offer numbered rows in batches; which of them are kept, in the reservoir's order."""
    start = 0
    for count in batches:
        rows = numbered(count, start)
        reservoir.update(count, lambda index, rows=rows: rows[index])
        start += count
    return reservoir.result().flatten().int().tolist()


def test_every_row_is_kept_equally_often_wherever_it_stands_in_the_stream() -> None:
    runs, capacity, batches = 1500, 8, [3, 30, 1, 16, 30]
    counts = torch.zeros(sum(batches))
    for seed in range(runs):
        counts[offer(Reservoir(capacity, seed), batches)] += 1
    share = capacity / len(counts)
    spread = (runs * share * (1 - share)) ** 0.5
    assert counts.sum() == runs * capacity
    # the largest of 80 deviations stays below 4.5 of their own size but for one run in 2000; the seeds are fixed
    assert float((counts - runs * share).abs().max()) < 4.5 * spread
    assert abs(float(counts[:33].mean()) - runs * share) < spread


@pytest.mark.parametrize("batches", [[5], [20], [7, 13], [1] * 50, [50], [25, 0, 25]])
def test_a_reservoir_keeps_all_it_has_room_for_and_nothing_twice(batches: list[int]) -> None:
    kept = offer(Reservoir(20, seed=3), batches)
    assert len(set(kept)) == len(kept) == min(20, sum(batches))
    assert set(kept) <= set(range(sum(batches)))


def test_the_sample_does_not_depend_on_how_the_stream_was_split() -> None:
    whole = offer(Reservoir(16, seed=5), [200])
    assert offer(Reservoir(16, seed=5), [50] * 4) == whole
    assert offer(Reservoir(16, seed=5), [1, 99, 7, 93]) == whole
    assert offer(Reservoir(16, seed=6), [200]) != whole


def test_rows_that_are_not_kept_are_not_gathered() -> None:
    """Patches of a convolution are larger than its picture; only those that are kept may be cut out."""
    gathered = []
    reservoir = Reservoir(10, seed=0)
    for _ in range(100):
        reservoir.update(100, lambda index: (gathered.append(len(index)), torch.zeros(len(index), 2))[1])
    # a stream of n rows changes a reservoir of k rows about k ln(n / k) times after it is full
    assert sum(gathered) < 200
    assert max(gathered) <= 10


def test_rows_are_kept_in_half_precision_without_a_gradient() -> None:
    reservoir = Reservoir(4, seed=0)
    assert reservoir.result().shape == (0, 0)
    rows = torch.randn(9, 3, requires_grad=True)
    reservoir.update(9, lambda index: rows[index] * 2)
    assert reservoir.result().dtype == torch.float16
    assert not reservoir.result().requires_grad


CONVOLUTIONS = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 without padding": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "oblong": {"kernel_size": (3, 1), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
    "even": {"kernel_size": 2, "stride": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "circular, as for tiles": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}


def convolution(**settings: object) -> nn.Conv2d:
    return nn.Conv2d(4, 5, bias=False, **settings).double()


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_rows_times_the_flattened_weight_are_a_convolutions_output(settings: dict) -> None:
    module, x = convolution(**settings), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = module(x).permute(0, 2, 3, 1).reshape(-1, 5)
    count, gather = input_rows(module, x)
    rows = gather(torch.arange(count))
    assert rows.shape == (len(expected), module.weight[0].numel())
    assert torch.allclose(rows @ module.weight.flatten(1).mT, expected, atol=1e-12)
    some = torch.tensor([count - 1, 0, count // 2])
    assert torch.equal(gather(some), rows[some])


@pytest.mark.parametrize("name", ["1x1", "3x3", "3x3 without padding", "strided", "dilated", "oblong", "even"])
def test_rows_equal_unfolds(name: str) -> None:
    settings = CONVOLUTIONS[name]
    module, x = convolution(**settings), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    count, gather = input_rows(module, x)
    expected = nn.functional.unfold(x, **settings).permute(0, 2, 1).flatten(0, 1)
    assert torch.equal(gather(torch.arange(count)), expected)


@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 6), (2, 3, 2, 6)])
def test_rows_of_a_linear_layer_are_its_tokens(shape: tuple[int, ...]) -> None:
    module, x = nn.Linear(6, 3, bias=False).double(), torch.randn(shape, dtype=torch.float64)
    count, gather = input_rows(module, x)
    assert torch.equal(gather(torch.arange(count)) @ module.weight.mT, module(x).reshape(-1, 3))
    assert input_rows(module, x[..., 0, :])[1](torch.tensor([0])).shape == (1, 6)


def test_rows_of_a_tensor_that_is_not_contiguous_are_not_a_copy_of_all_of_it() -> None:
    channels_first = torch.randn(2, 6, 5, 7)
    x = channels_first.permute(0, 2, 3, 1)
    count, gather = input_rows(nn.Linear(6, 3), x)
    assert torch.equal(gather(torch.arange(count)), x.reshape(-1, 6)), "control: the copy"
    # a view of 2**40 numbers, of which no machine could make a copy
    endless = torch.randn(6).expand(2**20, 2**17, 6)
    count, gather = input_rows(nn.Linear(6, 3), endless)
    assert count == 2**37 and torch.equal(gather(torch.tensor([0, 2**37 - 1])), endless[0, :2])


class Attention(nn.Module):
    """Self-attention, cross-attention and two convolutions, as far as a recording sees them."""

    def __init__(self) -> None:
        super().__init__()
        names = ("to_q", "to_k", "to_v", "cross_q", "cross_k", "cross_v", "second_k")
        self.layers = nn.ModuleDict({name: nn.Linear(6, 6) for name in names})
        self.layers["conv"] = nn.Conv2d(1, 1, 3, padding=1)
        self.layers["shortcut"] = nn.Conv2d(1, 1, 1)
        self.layers["idle"] = nn.Linear(6, 6)
        self.fail = False

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + sum(self.layers[name](x) for name in ("to_q", "to_k", "to_v"))
        x = x + self.layers["cross_q"](x) + sum(self.layers[name](context).mean(0) for name in ("cross_k", "cross_v"))
        if self.fail:
            raise RuntimeError("out of memory")
        picture = x[None]
        x = (self.layers["conv"](picture) + self.layers["shortcut"](picture))[0]
        return x + self.layers["second_k"](context).mean(0)


@pytest.fixture
def model() -> Attention:
    return Attention()


def layers_of(model: Attention) -> dict[str, Layer]:
    return {name: Layer.of(module) for name, module in model.layers.items()}


def record(
    model: Attention, capacity: Mapping[str, int], x: Tensor, context: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    with record_inputs(layers_of(model), capacity, seed=seed) as recorder, torch.no_grad():
        model(x, context)
        model(x, context)
    return recorder.result()


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_recorded_rows_are_what_entered_the_layer(model: Attention) -> None:
    x, context = torch.randn(8, 6), torch.randn(5, 6)
    result = record(model, {"to_q": 100, "cross_k": 4, "conv": 10}, x[None], context)
    assert {key: tuple(rows.shape) for key, rows in result.items()} == {
        "to_q": (16, 6),
        "cross_k": (4, 6),
        "conv": (10, 9),
    }
    for rows, entered in ((result["to_q"], x), (result["cross_k"], context)):
        nearest = torch.cdist(rows.float(), entered).min(dim=1).values
        assert float(nearest.max()) < HALF * float(entered.norm())
    assert float(torch.cdist(result["to_q"].float(), context).min()) > 0.1  # the other tensor's rows are others


def test_a_layers_rows_do_not_depend_on_which_others_are_recorded_but_on_the_seed(model: Attention) -> None:
    x, context = torch.randn(1, 40, 6), torch.randn(30, 6)
    alone = record(model, {"to_q": 5}, x, context)["to_q"]
    together = record(model, {"cross_k": 7, "to_v": 3, "to_q": 5, "conv": 4}, x, context)
    assert torch.equal(together["to_q"], alone)
    assert not torch.equal(record(model, {"to_q": 5}, x, context, seed=1)["to_q"], alone)
    assert not torch.equal(record(model, {"to_q": 5, "to_k": 5}, x, context)["to_k"], alone)


def test_what_a_layer_is_called_with_by_keyword_is_recorded_too() -> None:
    module, rows = nn.Linear(6, 2), torch.randn(3, 6)
    with record_inputs({"k": Layer.of(module)}, {"k": 5}, seed=0) as recorder, torch.no_grad():
        module(input=rows)
    assert torch.equal(recorder.result()["k"].sort(0).values, rows.half().sort(0).values)


def test_a_layer_says_itself_what_its_input_is() -> None:
    """As the packed k of an attention does, whose module is called with the queries first."""
    module = nn.MultiheadAttention(6, 2, batch_first=True)
    query, memory = torch.randn(1, 3, 6), torch.randn(1, 4, 6)
    part = slice(6, 12)
    layers = {
        "q": Layer(module, module, "in_proj_weight", slice(0, 6)),
        "k": Layer(module, module, "in_proj_weight", part, observed=lambda _, arguments, named: arguments[1]),
    }
    with record_inputs(layers, {"q": 9, "k": 9}, seed=0) as recorder, torch.no_grad():
        module(query, memory, memory)
    for key, entered in (("q", query), ("k", memory)):
        assert torch.equal(recorder.result()[key].sort(0).values, entered[0].half().sort(0).values)
    assert shared_inputs(layers, ["q", "k"], lambda: module(query, memory, memory)) == {"q": "q", "k": "k"}
    assert shared_inputs(layers, ["q", "k"], lambda: module(query, query, query)) == {"q": "q", "k": "q"}


class Halves(nn.Module):
    """Two layers, between which memory runs out where there are more than so many samples."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.first, self.second, self.holds = nn.Linear(1, 1), nn.Linear(1, 1), holds

    def forward(self, x: Tensor) -> Tensor:
        given = self.first(x)
        if len(x) > self.holds:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return given + self.second(x)


@pytest.mark.parametrize("holds", [8, 4, 3, 1])
@torch.no_grad()
def test_samples_that_are_tried_again_are_recorded_once_in_every_layer(holds: int) -> None:
    model = Halves(holds)
    layers = {"first": Layer.of(model.first), "second": Layer.of(model.second)}
    samples = torch.arange(16.0)[:, None]

    def run(recorder: Recorder, first: int, last: int) -> None:
        try:
            with recorder.attempt(range(first, last)):
                model(samples[first:last])
        except torch.cuda.OutOfMemoryError:
            middle = (first + last + 1) // 2
            run(recorder, first, middle), run(recorder, middle, last)

    with record_inputs(layers, {"first": 100, "second": 100}, seed=0) as recorder:
        run(recorder, 0, 8), run(recorder, 8, 16)
    expected = samples.flatten().tolist()
    assert {key: sorted(rows.flatten().tolist()) for key, rows in recorder.result().items()} == {
        "first": expected,
        "second": expected,
    }


def test_hooks_are_gone_after_success_error_and_a_wrong_name(model: Attention) -> None:
    x, context = torch.randn(1, 8, 6), torch.randn(5, 6)
    with record_inputs(layers_of(model), {"to_q": 3, "conv": 3}, seed=0):
        assert hooks(model) == 2
    assert hooks(model) == 0
    model.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        record(model, {"to_q": 3}, x, context)
    with pytest.raises(RuntimeError, match="out of memory"):
        shared_inputs(layers_of(model), ["to_q", "conv"], lambda: model(x, context))
    with pytest.raises(KeyError), record_inputs(layers_of(model), {"to_q": 3, "no such layer": 3}, seed=0):
        pass
    with pytest.raises(KeyboardInterrupt), record_inputs(layers_of(model), {"to_q": 3}, seed=0):
        raise KeyboardInterrupt
    assert hooks(model) == 0


def test_layers_that_receive_the_same_tensor_share_a_recording(model: Attention) -> None:
    keys = ["second_k", "to_k", "to_q", "to_v", "cross_q", "cross_k", "cross_v", "conv", "shortcut", "idle"]
    served = shared_inputs(layers_of(model), keys, lambda: model(torch.randn(1, 8, 6), torch.randn(5, 6)))
    groups: dict[str, set[str]] = {}
    for key, by in served.items():
        groups.setdefault(by, set()).add(key)
    assert sorted(map(sorted, groups.values())) == [
        ["conv"],  # the same picture as the shortcut's, but other patches of it
        ["cross_k", "cross_v", "second_k"],
        ["cross_q"],
        ["shortcut"],
        ["to_k", "to_q", "to_v"],
    ]
    assert all(by in members for by, members in groups.items())
    assert hooks(model) == 0


def test_a_real_model_shares_what_it_should(host: Host) -> None:
    def run() -> None:
        x = torch.zeros(1, host.latent_channels, 8, 8)
        host.denoise(x, torch.zeros(1, dtype=torch.long), host.encode([""]))

    keys = sorted(host.layers())
    served = shared_inputs(host.layers(), keys, run)
    cross = {served[key] for key in keys if key.endswith(("attn2_to_k", "attn2_to_v"))}
    assert len(cross) == 1
    for query in (key for key in keys if key.endswith("attn1_to_q")):
        assert served[query] == served[query[:-1] + "k"] == served[query[:-1] + "v"]
        assert served[query] not in cross
    assert len(set(served.values())) < 0.8 * len(served)


def test_a_row_too_large_for_half_precision_keeps_its_direction_and_one_that_is_none_is_seen() -> None:
    rows = torch.tensor([[1.0, -2.0, 3.0], [1e5, -2e5, 4e5], [float("inf"), 1.0, 1.0], [float("nan"), 1.0, 1.0]])
    kept = Reservoir(4, seed=0)
    kept.update(4, lambda chosen: rows[chosen])
    found = {tuple(row.tolist()) for row in kept.result()[kept.result().isfinite().all(dim=1)]}
    assert (1.0, -2.0, 3.0) in found and (16376.0, -32752.0, 65504.0) in found and len(found) == 2
    assert int((~kept.result().isfinite()).any(dim=1).sum()) == 2, "the model overflowed, and that is said later"
