"""One layer of every kind of network in every form it has, and the slow way to each one's delta.

Without pytest, as the real WebUI reads it too (`webui_kinds.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

D_OUT, C_IN, RANK = 12, 8, 3
#: form of a layer -> the shape of its weight
WEIGHTS = {
    "linear": (D_OUT, C_IN),
    "1x1": (D_OUT, C_IN, 1, 1),
    "3x3": (D_OUT, C_IN, 3, 3),
    "norm": (D_OUT,),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_of(form: str) -> Tensor:
    """The layer's own weight."""
    return draw(*WEIGHTS[form], seed=99)


@dataclass(frozen=True)
class Sample:
    """Attributes:
    kind: of network
    form: of the layer
    tensors: its parameters
    webui: whether the WebUI can read it
    """

    kind: str
    form: str
    tensors: dict[str, Tensor]
    webui: bool = True


def _kernel(form: str) -> tuple[int, ...]:
    return WEIGHTS[form][2:]


def _lora(form: str, up: str = "lora_up", down: str = "lora_down", tucker: bool = False) -> dict[str, Tensor]:
    ones = (1,) * len(_kernel(form))
    inner = ones if tucker else _kernel(form)
    core = {"lora_mid.weight": draw(RANK, RANK, 3, 3, seed=3)} if tucker else {}
    return {
        f"{up}.weight": draw(D_OUT, RANK, *ones, seed=1),
        f"{down}.weight": draw(RANK, C_IN, *inner, seed=2),
        **core,
    }


def _loha(form: str, tucker: bool = False) -> dict[str, Tensor]:
    size = 9 if form == "3x3" and not tucker else 1
    tensors = {}
    for which in "12":
        a = (RANK, D_OUT) if tucker else (D_OUT, RANK)
        tensors[f"hada_w{which}_a"] = draw(*a, seed=int(which))
        tensors[f"hada_w{which}_b"] = draw(RANK, C_IN * size, seed=int(which) + 2)
        if tucker:
            tensors[f"hada_t{which}"] = draw(RANK, RANK, 3, 3, seed=int(which) + 4)
    return tensors


def _lokr(form: str, first: str, second: str) -> dict[str, Tensor]:
    """Of `[3, 4]` and `[4, 2]`."""
    kernel = _kernel(form)
    size = 9 if form == "3x3" else 1
    tensors = {"lokr_w1": draw(3, 4, seed=1)}
    if first == "factored":
        tensors = {"lokr_w1_a": draw(3, 2, seed=1), "lokr_w1_b": draw(2, 4, seed=2)}
    if second == "whole":
        return {**tensors, "lokr_w2": draw(4, 2, *kernel, seed=3)}
    if second == "tucker":
        core = {"lokr_t2": draw(2, 2, 3, 3, seed=5)}
        return {**tensors, **core, "lokr_w2_a": draw(2, 4, seed=3), "lokr_w2_b": draw(2, 2, seed=4)}
    return {**tensors, "lokr_w2_a": draw(4, 2, seed=3), "lokr_w2_b": draw(2, 2 * size, seed=4)}


def _glora(form: str, older: bool) -> dict[str, Tensor]:
    ones = (1,) * len(_kernel(form))
    up_b, down_b, up_a, down_a = ("b2", "b1", "a2", "a1") if older else ("b1", "b2", "a1", "a2")
    return {
        f"{up_b}.weight": draw(D_OUT, RANK, *ones, seed=1),
        f"{down_b}.weight": draw(RANK, C_IN, *_kernel(form), seed=2),
        f"{up_a}.weight": draw(C_IN, RANK, *ones, seed=3) / 3,
        f"{down_a}.weight": draw(RANK, C_IN, *ones, seed=4) / 3,
        "alpha": torch.tensor(1.5),
    }


def _plain() -> dict[str, Sample]:
    """Every kind in every form, without anything that all of them share."""
    found = {}
    for form in ("linear", "1x1", "3x3"):
        found[f"LoRA {form}"] = Sample("LoRA", form, _lora(form))
        found[f"LoHa {form}"] = Sample("LoHa", form, _loha(form))
        for first, second in product(("whole", "factored"), repeat=2):
            found[f"LoKr {form} {first} {second}"] = Sample("LoKr", form, _lokr(form, first, second))
        for older in (True, False):
            name = f"GLoRA {form}{'' if older else ' newer'}"
            found[name] = Sample("GLoRA", form, _glora(form, older), webui=older and form == "linear")
        for on_input in (True, False):
            channels = C_IN if on_input else D_OUT
            shape = (channels,) if form == "linear" else (1, channels, 1, 1)
            tensors = {"weight": draw(*shape, seed=1), "on_input": torch.tensor(int(on_input))}
            name = f"(IA)3 {form} {'in' if on_input else 'out'}"
            found[name] = Sample("(IA)3", form, tensors, webui=form == "linear" or on_input)
        blocks = draw(3, 4, 4, seed=1) / 4
        found[f"OFT {form}"] = Sample("OFT", form, {"oft_blocks": blocks})
        found[f"OFT {form} bound"] = Sample("OFT", form, {"oft_blocks": blocks, "alpha": torch.tensor(0.01)})
        found[f"OFT {form} loose bound"] = Sample("OFT", form, {"oft_blocks": blocks, "alpha": torch.tensor(9.0)})
        rescale = draw(D_OUT, *(1,) * (len(WEIGHTS[form]) - 1), seed=2)
        found[f"OFT {form} rescaled"] = Sample("OFT", form, {"oft_blocks": blocks, "rescale": rescale})
        found[f"OFT {form} early"] = Sample("OFT", form, {"oft_diag": draw(3, 4, 4, seed=1)})
        # 12 rows make blocks of 2 and one level more
        found[f"OFT {form} butterfly"] = Sample("OFT", form, {"oft_blocks": draw(2, 6, 2, 2, seed=1) / 4})
        bias = {"diff_b": draw(D_OUT, seed=2)}
        found[f"full {form}"] = Sample("full", form, {"diff": draw(*WEIGHTS[form], seed=1), **bias})
    found["LoRA linear on 1x1"] = Sample("LoRA", "1x1", _lora("linear"))
    found["LoRA PEFT names"] = Sample("LoRA", "linear", _lora("linear", "lora_B", "lora_A"))
    found["LoRA 3x3 tucker"] = Sample("LoRA", "3x3", _lora("3x3", tucker=True))
    found["LoHa 3x3 tucker"] = Sample("LoHa", "3x3", _loha("3x3", tucker=True))
    for first in ("whole", "factored"):
        found[f"LoKr 3x3 {first} tucker"] = Sample("LoKr", "3x3", _lokr("3x3", first, "tucker"))
    norm = {"w_norm": draw(D_OUT, seed=1), "b_norm": draw(D_OUT, seed=2)}
    found["norm"] = Sample("norm", "norm", norm)
    found["full norm"] = Sample("full", "norm", {"diff": norm["w_norm"], "diff_b": norm["b_norm"]})
    return found


#: what may come on top of a kind -> parameters, by the shape of the weight
OPTIONS = {
    "": lambda shape: {},
    "alpha": lambda shape: {"alpha": torch.tensor(1.25)},
    "scale": lambda shape: {"alpha": torch.tensor(1.25), "scale": torch.tensor(-0.7)},
    "added": lambda shape: {"alpha": torch.tensor(1.25), "bias": draw(*shape, seed=7)},
    "DoRA": lambda shape: {"alpha": torch.tensor(1.25), "dora_scale": _magnitude((1, *shape[1:2]), shape)},
    "DoRA by rows": lambda shape: {"alpha": torch.tensor(1.25), "dora_scale": _magnitude(shape[:1], shape)},
    "DoRA of PEFT": lambda shape: {"lora_magnitude_vector": draw(shape[0], seed=8).abs()},
}


def _magnitude(of: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    return draw(*of, *(1,) * (len(shape) - len(of)), seed=8).abs()


def samples() -> dict[str, Sample]:
    """Every kind in every form with every option that it can have."""
    found = {}
    for name, sample in _plain().items():
        for option, make in OPTIONS.items():
            extra = make(WEIGHTS[sample.form])
            own_alpha = sample.kind == "OFT" or "alpha" in sample.tensors
            if sample.form == "norm" and option not in ("", "scale"):
                continue
            if option == "DoRA of PEFT" and sample.kind != "LoRA":
                continue
            if sample.kind == "OFT" and option in ("alpha", "scale"):
                continue
            if own_alpha:
                extra.pop("alpha", None)
            # the WebUI gives GLoRA and (IA)3 a wrong shape for what is added
            wrong = option == "added" and sample.kind in ("GLoRA", "(IA)3")
            # and drops everything that stands beside `lora_A` and `lora_B`
            wrong |= name == "LoRA PEFT names" and option != ""
            # which reads no DoRA by rows as it was trained
            webui = sample.webui and option not in ("DoRA of PEFT", "DoRA by rows") and not wrong
            tensors = {**extra, **sample.tensors}
            found[f"{name} {option}".strip()] = Sample(sample.kind, sample.form, tensors, webui)
    return found
