"""One contract for every kind of network: exact factors, what is refused, and what is said when shapes do not fit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lib_loraclr.deltas import KINDS, kind_of, layer_factors
from lib_loraclr.deltas import __path__ as folder
from lib_loraclr.errors import LoraclrError

#: float64 rounding through one product
CLOSE = 1e-12
#: `layer_factors` converts to fp32
SINGLE = 1e-5

D_OUT, C_IN, RANK = 6, 5, 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(shape: str, up: str = "lora_up.weight", down: str = "lora_down.weight") -> dict[str, Tensor]:
    """The tensors of a LoRA for one layer, without alpha."""
    kernel = {"linear": (), "1x1": (1, 1), "3x3": (3, 3), "3x1": (3, 1), "tucker": (1, 1)}[shape]
    ones = (1,) * len(kernel)
    tensors = {up: draw(D_OUT, RANK, *ones, seed=1), down: draw(RANK, C_IN, *kernel, seed=2)}
    if shape == "tucker":
        tensors["lora_mid.weight"] = draw(RANK, RANK, 3, 3, seed=3)
    return tensors


def slow_lora(tensors: dict[str, Tensor]) -> Tensor:
    """`ΔW [d_out, c_in, k, k]` (or `[d_out, d_in]`), one entry of the rank at a time."""
    up = next(tensors[name] for name in ("lora_up.weight", "lora_B.weight") if name in tensors)
    down = next(tensors[name] for name in ("lora_down.weight", "lora_A.weight") if name in tensors)
    total = 0
    for i in range(RANK):
        column = up[:, i].reshape(D_OUT, *(1,) * (down.dim() - 1))
        if "lora_mid.weight" not in tensors:
            total = total + column * down[i]
            continue
        for j in range(RANK):
            total = total + column * tensors["lora_mid.weight"][i, j] * down[j].reshape(1, C_IN, 1, 1)
    if "scale" in tensors:
        return total * float(tensors["scale"])
    return total * float(tensors["alpha"]) / RANK if "alpha" in tensors else total


#: kind -> its samples by name, and the slow formula they are held against
SAMPLES = {
    "LoRA": (
        {
            **{shape: lora(shape) for shape in ("linear", "1x1", "3x3", "3x1", "tucker")},
            "peft names": lora("linear", "lora_B.weight", "lora_A.weight"),
        },
        slow_lora,
    ),
}
SCALES = {
    "no alpha": {},
    "alpha": {"alpha": torch.tensor(1.5)},
    "alpha of one entry": {"alpha": torch.tensor([4.0])},
    "alpha is the rank": {"alpha": torch.tensor(float(RANK))},
    "scale replaces alpha": {"alpha": torch.tensor(1.0), "scale": torch.tensor(-0.7)},
}
CASES = [(kind, name) for kind in KINDS for name in SAMPLES[kind.KIND][0]]
IDS = [f"{kind.KIND}-{name}" for kind, name in CASES]


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("kind, name", CASES, ids=IDS)
def test_factors_equal_the_slow_formula(kind: ModuleType, name: str, scale: dict[str, Tensor]) -> None:
    samples, slow = SAMPLES[kind.KIND]
    tensors = {**samples[name], **scale}
    expected = slow(tensors).flatten(1)
    factors = kind.factors(tensors)
    assert factors.dense().dtype == torch.float64
    assert torch.allclose(factors.dense(), expected, rtol=CLOSE, atol=CLOSE)
    assert factors.rank < min(expected.shape)  # low rank as it was, not dense
    read = layer_factors("lora_unet_layer", tensors, "a.safetensors")
    assert read.up.dtype == read.down.dtype == torch.float32
    assert torch.allclose(read.dense(), expected.float(), rtol=SINGLE, atol=SINGLE)


def test_alpha_is_in_force() -> None:
    plain, half = (layer_factors("k", {**lora("linear"), "alpha": torch.tensor(a)}, "a") for a in (3.0, 1.5))
    assert torch.allclose(plain.dense(), 2 * half.dense())
    assert torch.equal(plain.dense(), layer_factors("k", lora("linear"), "a").dense())


@pytest.mark.parametrize("shape", ["1x1", "3x3", "tucker"])
def test_a_convolutions_delta_does_what_the_network_does_on_a_picture(shape: str) -> None:
    """The network runs its factors one after the other; the merged layer runs one convolution with `ΔW`."""
    tensors = {**lora(shape), "alpha": torch.tensor(2.0)}
    picture = draw(2, C_IN, 7, 6, seed=5)
    kernel = 1 if shape == "1x1" else 3
    hidden = torch.nn.functional.conv2d(picture, tensors["lora_down.weight"], padding=1 if shape == "3x3" else 0)
    if shape == "tucker":
        hidden = torch.nn.functional.conv2d(hidden, tensors["lora_mid.weight"], padding=1)
    expected = torch.nn.functional.conv2d(hidden, tensors["lora_up.weight"]) * 2 / RANK
    (kind,) = (kind for kind in KINDS if kind.KIND == "LoRA")
    delta = kind.factors(tensors).dense().view(D_OUT, C_IN, kernel, kernel)
    assert torch.allclose(torch.nn.functional.conv2d(picture, delta, padding=kernel // 2), expected, atol=1e-10)


def test_every_kind_has_its_names_its_samples_and_is_recognised_by_them() -> None:
    files = {path.stem for path in Path(folder[0]).glob("*.py")} - {"__init__"}
    assert {kind.__name__.rpartition(".")[2] for kind in KINDS} == files
    assert {kind.KIND for kind in KINDS} == set(SAMPLES)
    for kind, name in CASES:
        assert kind_of(SAMPLES[kind.KIND][0][name]) is kind
        assert any(required <= set(SAMPLES[kind.KIND][0][name]) for required in kind.REQUIRED)


FOREIGN = {
    "LoHa": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"],
    "LoKr": ["lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"],
    "LoKr (w1 factored)": ["lokr_w1_a", "lokr_w1_b", "lokr_w2", "alpha"],
    "(IA)3": ["weight", "on_input", "alpha"],
    "OFT": ["oft_blocks", "alpha"],
    "OFT (diag)": ["oft_diag", "alpha"],
    "GLoRA": ["a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"],
    "full": ["diff", "diff_b"],
    "norm": ["w_norm", "b_norm"],
    "DoRA": ["lora_up.weight", "lora_down.weight", "alpha", "dora_scale"],
    "unknown": ["something.weight"],
    "unknown (half a LoRA)": ["lora_up.weight", "alpha"],
    "unknown (two at once)": ["lora_up.weight", "lora_down.weight", "lora_A.weight", "lora_B.weight"],
    "unknown (no tensors)": [],
}


@pytest.mark.parametrize("kind, names", FOREIGN.items(), ids=FOREIGN)
def test_other_kinds_are_refused_by_name(kind: str, names: list[str]) -> None:
    kind = kind.partition(" (")[0]
    tensors = {name: torch.ones(2, 2) for name in names}
    assert kind_of(tensors) == kind
    with pytest.raises(LoraclrError) as refusal:
        layer_factors("lora_unet_layer", tensors, "some.safetensors")
    message = str(refusal.value)
    article = "an" if kind in ("unknown", "OFT", "(IA)3") else "a"
    assert message.startswith(f"some.safetensors is {article} {kind} network in lora_unet_layer")
    assert "leave this file out" in message
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
    "mid gives another rank": {
        "lora_up.weight": (6, 3),
        "lora_down.weight": (3, 5, 1, 1),
        "lora_mid.weight": (4, 3, 3, 3),
    },
    "mid of no kernel": {"lora_up.weight": (6, 3), "lora_down.weight": (3, 5, 1, 1), "lora_mid.weight": (3, 3)},
    "alpha of two": {"lora_up.weight": (6, 3), "lora_down.weight": (3, 5), "alpha": (2,)},
    "no rank": {"lora_up.weight": (6, 0), "lora_down.weight": (0, 5), "alpha": ()},
}


@pytest.mark.parametrize("shapes", WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_fit_each_other_are_named(shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(LoraclrError) as refusal:
        layer_factors("lora_unet_layer", tensors, "some.safetensors")
    assert str(refusal.value).startswith("some.safetensors: the tensors of lora_unet_layer do not fit each other")
    for name, shape in shapes.items():
        assert f"{name} {list(shape)}" in str(refusal.value)
