"""Deltas against the package that trains these kinds of networks, where it is installed (`pip install lycoris-lora`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib_loraclr.files.deltas import layer_delta

lycoris = pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed")

#: fp32 rounding, of the largest entry
SINGLE = 1e-5
LAYERS = {
    "linear": lambda: nn.Linear(8, 16),
    "1x1": lambda: nn.Conv2d(8, 16, 1),
    "3x3": lambda: nn.Conv2d(8, 16, 3, padding=1),
}
#: name -> class, options
MODULES = {
    "LoCon": ("LoConModule", {}),
    "LoCon tucker": ("LoConModule", {"use_tucker": True}),
    "LoCon rsLoRA": ("LoConModule", {"rs_lora": True}),
    "LoCon DoRA": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": ("LohaModule", {}),
    "LoHa tucker": ("LohaModule", {"use_tucker": True}),
    "LoHa DoRA": ("LohaModule", {"weight_decompose": True, "wd_on_out": False}),
    "LoKr": ("LokrModule", {"factor": 4}),
    "LoKr both factored": ("LokrModule", {"factor": 4, "decompose_both": True}),
    "LoKr both whole": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "LoKr tucker": ("LokrModule", {"factor": 2, "use_tucker": True}),
    "LoKr DoRA": ("LokrModule", {"factor": 4, "weight_decompose": True, "wd_on_out": False}),
    "LoKr DoRA by rows": ("LokrModule", {"factor": 4, "weight_decompose": True, "wd_on_out": True}),
    "GLoRA": ("GLoRAModule", {}),
    "(IA)3 in": ("IA3Module", {"train_on_input": True}),
    "(IA)3 out": ("IA3Module", {"train_on_input": False}),
    "OFT": ("DiagOFTModule", {}),
    "OFT bound": ("DiagOFTModule", {"constraint": 0.01}),
    "OFT rescaled": ("DiagOFTModule", {"rescaled": True}),
    "BOFT": ("ButterflyOFTModule", {}),
}


def make(name: str, layer: nn.Module) -> nn.Module:
    """A module of LyCORIS with random parameters."""
    kind, options = MODULES[name]
    rank = {"DiagOFTModule": 4, "ButterflyOFTModule": 2}.get(kind, 2)
    alpha = float(rank) if "DoRA" in name else 1.5
    module = getattr(lycoris, kind)("lora_unet_layer", layer, 1.0, rank, alpha, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
        if hasattr(module, "dora_scale"):
            module.dora_scale.abs_()
    return module


@pytest.mark.parametrize("form", LAYERS)
@pytest.mark.parametrize("name", MODULES)
def test_a_delta_is_what_lycoris_makes_of_it(name: str, form: str) -> None:
    layer = LAYERS[form]()
    module = make(name, layer)
    state = module.state_dict()
    tensors: dict[str, Tensor] = {name: state[name] for name in module.weight_list if name in state}
    with torch.no_grad():
        if "DoRA" in name:
            expected = module.get_merged_weight(shape=layer.weight.shape)[0] - layer.weight
        elif name.startswith(("LoHa", "LoKr")):
            # what training runs with; their `get_diff_weight` applies alpha / r once more (4.1.3)
            expected = module.get_weight(layer.weight.shape)
        else:
            expected = module.get_diff_weight()[0]
    assert expected.norm() > 0.01, "control: it does something"
    found = layer_delta("lora_unet_layer", tensors, "a.safetensors", layer.weight)
    dense = found.factors.dense().reshape(layer.weight.shape)
    assert found.unused == ()
    assert (dense - expected.reshape(dense.shape)).norm() <= (found.loss + SINGLE) * expected.norm()


@pytest.mark.parametrize("form", LAYERS)
def test_a_full_delta_is_what_lycoris_makes_of_it(form: str) -> None:
    layer = LAYERS[form]()
    tensors = {"diff": torch.randn_like(layer.weight), "diff_b": torch.randn_like(layer.bias)}
    with torch.no_grad():
        module = lycoris.FullModule.make_module_from_state_dict("lora_unet_layer", layer, *tensors.values())
        weight, bias = module.get_merged_weight()
        found = layer_delta("lora_unet_layer", tensors, "a.safetensors", layer.weight)
        error = found.factors.dense().reshape(layer.weight.shape) - (weight - layer.weight)
        assert error.norm() <= (found.loss + SINGLE) * tensors["diff"].norm()
        assert torch.allclose(found.bias.dense().flatten(), bias - layer.bias, atol=SINGLE)


@pytest.mark.parametrize("norm", [nn.LayerNorm(12), nn.GroupNorm(3, 12)], ids=["layer", "group"])
def test_a_norm_is_what_lycoris_makes_of_it(norm: nn.Module) -> None:
    module = lycoris.NormModule("lora_unet_norm", norm)
    with torch.no_grad():
        module.w_norm.normal_()
        module.b_norm.normal_()
        weight, bias = module.make_weight()
    tensors = {"w_norm": module.w_norm.detach(), "b_norm": module.b_norm.detach()}
    found = layer_delta("lora_unet_norm", tensors, "a.safetensors", norm.weight)
    assert torch.allclose(found.factors.dense().flatten(), weight - norm.weight, atol=SINGLE)
    assert torch.allclose(found.bias.dense().flatten(), bias - norm.bias, atol=SINGLE)
