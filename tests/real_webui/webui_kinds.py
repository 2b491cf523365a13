"""Every kind of network as the WebUI's own code reads it; asked for through `webui_answers.py`."""

from __future__ import annotations

import torch
from networks_of_kinds import samples, weight_of
from torch import nn

from lib_loraclr.files.deltas import layer_delta


def _module(form: str) -> nn.Module:
    weight = weight_of(form).float()
    if form == "norm":
        module = nn.LayerNorm(len(weight))
    elif form == "linear":
        module = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        kernel = weight.shape[-1]
        module = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, padding=kernel // 2)
    module.weight.data.copy_(weight)
    return module


def kind_errors(multiplier: float = 1.0, dyn: int = 0) -> dict[str, list[float]]:
    """For every layer that the WebUI can read: the relative difference between its `calc_updown` and our delta, what factoring
    may lose of it, and the relative difference of the bias.

    Args:
        multiplier: the weight in the prompt
        dyn: `dyn=` in the prompt; 0 for none
    """
    import network
    import networks

    net = network.Network("sample", None)
    net.unet_multiplier, net.dyn_dim = multiplier, dyn or None
    found = {}
    for name, sample in samples().items():
        if not sample.webui:
            continue
        module = _module(sample.form)
        tensors = {key: t.float() if t.is_floating_point() else t for key, t in sample.tensors.items()}
        # clones, as `finalize_updown` adds `bias` to a full delta in place
        own = {key: tensor.clone() for key, tensor in tensors.items()}
        weights = network.NetworkWeights("file_key", "diffusion_model_layer", own, module)
        theirs = next(filter(None, (kind.create_module(net, weights) for kind in networks.module_types)))
        with torch.no_grad():
            updown, bias = theirs.calc_updown(module.weight)
        ours = layer_delta("layer", tensors, "sample", module.weight, dyn=dyn)
        dense = ours.factors.dense().view_as(updown) * multiplier
        bias_error = (
            0.0 if bias is None else float((ours.bias.dense().flatten() * multiplier - bias).norm() / bias.norm())
        )
        found[name] = [float((dense - updown).norm() / updown.norm()), ours.loss, bias_error]
    return found
