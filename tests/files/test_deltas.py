"""One contract for every kind of network: its delta, what is exact, what is refused and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks_of_kinds import C_IN, D_OUT, RANK, Sample, draw, samples, weight_of
from slow_deltas import slow_delta
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.deltas import ACCURACY, KINDS, kind_name, kind_of, layer_delta
from lib_loraclr.files.deltas import __path__ as folder

#: fp32 rounding through a few products, of the largest entry
SINGLE = 1e-5
#: kinds without exact low-rank factors, and options that take them from all others
DENSE_KINDS, DENSE_OPTIONS = {"(IA)3", "OFT", "full"}, ("added", "DoRA", "rows", "PEFT")

SAMPLES = samples()


def delta_of(sample: Sample, **changes: Tensor):
    return layer_delta("lora_unet_layer", {**sample.tensors, **changes}, "some.safetensors", weight_of(sample.form))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_delta_is_what_the_formula_says(sample: Sample) -> None:
    expected = slow_delta(sample)
    assert expected.abs().max() > 0.01, "control: it does something"
    found = delta_of(sample)
    dense = found.factors.dense().reshape(expected.shape)
    assert found.factors.up.dtype == found.factors.down.dtype == torch.float32
    assert found.loss <= ACCURACY and found.unused == ()
    assert (dense.double() - expected).norm() <= (found.loss + SINGLE) * expected.norm()
    bias = next((sample.tensors[name] for name in ("diff_b", "b_norm") if name in sample.tensors), None)
    assert (found.bias is None) == (bias is None)
    assert bias is None or torch.allclose(found.bias.dense().flatten(), bias.float())


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_every_parameter_acts(sample: Sample) -> None:
    before = delta_of(sample).factors.dense()
    inert = {"alpha", "diff_b", "b_norm", "on_input"}
    for name, tensor in sample.tensors.items():
        # magnitudes of rows undo what makes rows longer
        undone = name == "rescale" and len(sample.tensors.get("dora_scale", ())) == D_OUT
        if name in inert or undone:
            continue
        noise = draw(*tensor.shape, seed=50).reshape(tensor.shape) / 4
        after = delta_of(sample, **{name: tensor + noise * tensor.abs().clamp_min(0.1)}).factors.dense()
        assert error(after, before.double()) > 1e-3, name


@pytest.mark.parametrize("name", [name for name, s in SAMPLES.items() if s.kind not in DENSE_KINDS])
def test_low_rank_kinds_have_exact_factors(name: str) -> None:
    if not name.endswith(DENSE_OPTIONS):
        found = delta_of(SAMPLES[name])
        assert found.loss == 0
        assert found.factors.rank <= min(found.factors.shape)


RANKS = {
    "LoRA linear": RANK,
    "LoHa 3x3": RANK**2,
    "LoHa 3x3 tucker": RANK**2,
    "LoKr 3x3 factored factored": 2 * 2,
    "LoKr 3x3 whole tucker": 3 * 2,
    "GLoRA linear": 2 * RANK,
    "norm": 1,
}


@pytest.mark.parametrize(("name", "rank"), RANKS.items(), ids=RANKS)
def test_exact_factors_have_the_rank_that_the_kind_has(name: str, rank: int) -> None:
    assert delta_of(SAMPLES[name]).factors.rank == rank


def test_a_dense_delta_of_low_rank_is_factored_and_tells_what_it_lost() -> None:
    strong, weak = draw(40, 2, seed=1) @ draw(2, 30, seed=2), draw(40, 30, seed=3)
    weak *= 5e-4 * strong.norm() / weak.norm()
    found = layer_delta("k", {"diff": strong + weak}, "a", torch.zeros(40, 30))
    assert found.factors.rank == 2
    assert 1e-4 < found.loss < ACCURACY
    lost = (found.factors.dense().double() - (strong + weak)).norm() / (strong + weak).norm()
    assert float(lost) == pytest.approx(found.loss, rel=0.01)
    assert layer_delta("k", {"diff": strong + 10 * weak}, "a", torch.zeros(40, 30)).factors.rank > 2
    assert layer_delta("k", {"diff": 0 * strong}, "a", torch.zeros(40, 30)).factors.norm() == 0


def test_a_lora_of_more_ranks_than_the_layer_has_stays_exact() -> None:
    tensors = {"lora_up.weight": draw(4, 6, seed=1), "lora_down.weight": draw(6, 9, seed=2)}
    found = layer_delta("k", tensors, "a", torch.zeros(4, 9))
    expected = tensors["lora_up.weight"] @ tensors["lora_down.weight"]
    assert found.loss == 0 and found.factors.rank == 4
    assert error(found.factors.dense(), expected) < SINGLE


def test_dyn_uses_the_first_ranks_of_a_lora_at_the_scale_of_all() -> None:
    tensors = SAMPLES["LoRA linear alpha"].tensors
    weight = weight_of("linear")
    found = layer_delta("k", tensors, "a", weight, dyn=2).factors
    expected = tensors["lora_up.weight"][:, :2] @ tensors["lora_down.weight"][:2] * float(tensors["alpha"]) / RANK
    assert error(found.dense(), expected) < SINGLE
    assert error(found.dense(), slow_delta(SAMPLES["LoRA linear alpha"])) > 0.1
    other = SAMPLES["LoHa linear"]
    assert torch.equal(
        layer_delta("k", other.tensors, "a", weight, dyn=2).factors.dense(), delta_of(other).factors.dense()
    )


GLORA_SIZES = {
    "conv_in": (32, 4, 8),
    "conv_out": (4, 32, 8),
    "square, rank above": (6, 6, 9),
    "square, rank below": (6, 6, 2),
    "rank of the outputs": (8, 4, 8),
    "rank of the inputs": (4, 8, 8),
}


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(("d_out", "c_in", "rank"), GLORA_SIZES.values(), ids=GLORA_SIZES)
def test_gloras_forms_are_told_apart_at_any_rank(d_out: int, c_in: int, rank: int, older: bool) -> None:
    factors = [(d_out, rank), (rank, c_in), (c_in, rank), (rank, c_in)]
    up, down, a_up, a_down = (draw(*shape, seed=i) / 3 for i, shape in enumerate(factors))
    names = ("b2", "b1", "a2", "a1") if older else ("b1", "b2", "a1", "a2")
    tensors = dict(zip([f"{name}.weight" for name in names], (up, down, a_up, a_down), strict=True))
    tensors["alpha"] = torch.tensor(0.3)
    weight = draw(d_out, c_in, seed=9)
    scale = 1 if older else 0.3 / rank
    expected = (up @ down + weight @ a_up @ a_down) * scale
    assert error(layer_delta("k", tensors, "a", weight).factors.dense(), expected) < SINGLE
    if d_out != c_in:
        assert kind_of(tensors).sides(tensors) == (d_out, c_in)


def test_a_norms_delta_may_be_a_row() -> None:
    row = {name: tensor[None] for name, tensor in SAMPLES["norm"].tensors.items()}
    found, expected = delta_of(SAMPLES["norm"], **row), delta_of(SAMPLES["norm"])
    assert torch.equal(found.factors.dense(), expected.factors.dense()), "and no [1, d]"
    assert torch.equal(found.bias.dense(), expected.bias.dense())
    assert kind_of(row).sides(row) == (D_OUT, None)


@pytest.mark.parametrize("form", ["1x1", "3x3", "3x3 tucker"])
def test_a_convolutions_delta_does_what_the_network_does_on_a_picture(form: str) -> None:
    """The network runs its factors one after the other; the merged layer runs one convolution with `ΔW`."""
    sample = SAMPLES[f"LoRA {form} alpha"]
    picture = draw(2, C_IN, 7, 6, seed=5)
    convolve = torch.nn.functional.conv2d
    hidden = convolve(picture, sample.tensors["lora_down.weight"], padding=int(form == "3x3"))
    if "tucker" in form:
        hidden = convolve(hidden, sample.tensors["lora_mid.weight"], padding=1)
    expected = convolve(hidden, sample.tensors["lora_up.weight"]) * float(sample.tensors["alpha"]) / RANK
    delta = delta_of(sample).factors.dense().view_as(weight_of(sample.form)).double()
    assert error(convolve(picture, delta, padding=delta.shape[-1] // 2), expected) < SINGLE


def test_every_kind_has_its_names_its_samples_and_is_recognised_by_them() -> None:
    files = {path.stem for path in Path(folder[0]).glob("*.py")} - {"__init__", "dora"}
    assert {kind.__name__.rpartition(".")[2] for kind in KINDS} == files
    assert {kind.KIND for kind in KINDS} == {sample.kind for sample in SAMPLES.values()}
    for name, sample in SAMPLES.items():
        assert sample.kind == kind_of(sample.tensors).KIND
        assert kind_name(sample.tensors) == sample.kind + (" with DoRA" if "DoRA" in name else "")
        d_out, channels = kind_of(sample.tensors).sides(sample.tensors)
        assert d_out in (D_OUT, None)
        assert channels in (C_IN, None) or sample.kind == "LoHa" and channels == 9 * C_IN or "LoKr 3x3" in name


def test_of_two_kinds_in_one_layer_the_webuis_first_is_used_and_the_other_listed() -> None:
    tensors = {**SAMPLES["LoRA linear"].tensors, "diff_b": torch.ones(D_OUT), "scalar": torch.ones(1)}
    found = layer_delta("k", tensors, "a", weight_of("linear"))
    assert found.unused == ("diff_b", "scalar") and found.bias is None
    assert torch.equal(found.factors.dense(), delta_of(SAMPLES["LoRA linear"]).factors.dense())


UNKNOWN = {
    "something else": ["something.weight"],
    "half a LoRA": ["lora_up.weight", "alpha"],
    "half a norm": ["w_norm"],
    "half a LoKr": ["lokr_w1", "lokr_w2_a"],
    "no tensors": [],
}


@pytest.mark.parametrize("names", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_kinds_are_refused_by_name(names: list[str]) -> None:
    tensors = {name: torch.ones(2, 2) for name in names}
    assert kind_of(tensors) is None and kind_name(tensors) == "unknown"
    with pytest.raises(LoraclrError) as refusal:
        layer_delta("lora_unet_layer", tensors, "some.safetensors", torch.zeros(2, 2))
    message = str(refusal.value)
    assert message.startswith("some.safetensors is of an unknown kind of network in lora_unet_layer")
    assert "LoRA, LoHa, (IA)3, LoKr, full, norm, GLoRA, OFT can be merged; leave this file out" in message
    assert all(name in message for name in names)


WRONG = {
    "ranks differ": {"lora_up.weight": (6, 3), "lora_down.weight": (4, 5)},
    "up is a 3x3 kernel": {"lora_up.weight": (6, 3, 3, 3), "lora_down.weight": (3, 5)},
    "up is a number": {"lora_up.weight": (), "lora_down.weight": (3, 5)},
    "down is a number": {"lora_up.weight": (6, 3), "lora_down.weight": ()},
    "mid of another rank": {
        "lora_up.weight": (6, 3),
        "lora_down.weight": (3, 5, 1, 1),
        "lora_mid.weight": (3, 4, 3, 3),
    },
    "mid of no kernel": {"lora_up.weight": (6, 3), "lora_down.weight": (3, 5, 1, 1), "lora_mid.weight": (3, 3)},
    "alpha of two": {"lora_up.weight": (6, 3), "lora_down.weight": (3, 5), "alpha": (2,)},
    "no rank": {"lora_up.weight": (6, 0), "lora_down.weight": (0, 5), "alpha": ()},
    "magnitudes of another width": {"lora_up.weight": (6, 3), "lora_down.weight": (3, 5), "dora_scale": (1, 4)},
    "DoRA of another layer": {"lora_up.weight": (7, 3), "lora_down.weight": (3, 5), "dora_scale": (1, 5)},
    "LoHa of two shapes": {"hada_w1_a": (6, 3), "hada_w1_b": (3, 5), "hada_w2_a": (4, 3), "hada_w2_b": (3, 5)},
    "blocks that do not divide": {"oft_blocks": (4, 4, 4)},
    "scales of another width": {"weight": (4,), "on_input": ()},
    "GLoRA of another width": {"a1.weight": (2, 9), "a2.weight": (9, 2), "b1.weight": (2, 5), "b2.weight": (6, 2)},
}


@pytest.mark.parametrize("shapes", WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_fit_each_other_or_the_layer_are_named(shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    if "a1.weight" in tensors:
        tensors["alpha"] = torch.tensor(1.0)
    with pytest.raises(LoraclrError) as refusal:
        layer_delta("lora_unet_layer", tensors, "some.safetensors", torch.ones(6, 5))
    said = "some.safetensors: the tensors of lora_unet_layer do not fit each other or the layer [6, 5]"
    assert str(refusal.value).startswith(said)
    for name, shape in shapes.items():
        assert f"{name} {list(shape)}" in str(refusal.value)


def test_a_delta_that_is_not_finite_is_refused() -> None:
    tensors = {**SAMPLES["LoRA linear"].tensors, "dora_scale": torch.ones(1, C_IN)}
    tensors["lora_up.weight"] = torch.zeros(D_OUT, RANK)
    with pytest.raises(LoraclrError, match="a: the delta of k is not finite on this checkpoint: leave this file out"):
        layer_delta("k", tensors, "a", torch.zeros(D_OUT, C_IN))


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("older", [True, False])
def test_both_forms_of_glora_are_told_apart_at_ranks_above_the_channels(older: bool, rank: int) -> None:
    """As of the first convolution, which LyCORIS adapts by default and which has four channels."""
    weight = torch.randn(64, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    b_up, b_down = torch.randn(64, rank, 1, 1), torch.randn(rank, 4, 3, 3)
    a_up, a_down = torch.randn(4, rank, 1, 1), torch.randn(rank, 4, 1, 1)
    first, second = ("2", "1") if older else ("1", "2")
    tensors = {
        f"b{first}.weight": b_up,
        f"b{second}.weight": b_down,
        f"a{first}.weight": a_up,
        f"a{second}.weight": a_down,
    }
    tensors["alpha"] = torch.tensor(float(rank) / 2)
    changed = torch.einsum("orij,rckl->ockl", b_up, b_down)
    changed = changed + torch.einsum("odkl,drij,rcij->ockl", weight, a_up, a_down)
    found = layer_delta("conv_in", tensors, "file", weight).factors.dense().view_as(weight)
    assert torch.allclose(found, changed * (1.0 if older else 0.5), atol=1e-3)
