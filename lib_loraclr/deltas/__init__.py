"""What each kind of network stores for a layer, and the delta it stands for.

One file per kind, all with the same names: `KIND`, `REQUIRED` and `OPTIONAL` parameter names, and `factors(tensors)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..low_rank import Factors
from . import lora

KINDS: tuple[ModuleType, ...] = (lora,)

#: a parameter name that only this kind of network has; named when the kind is refused
_NOT_YET = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "on_input": "(IA)3",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "a1.weight": "GLoRA",
    "diff": "full",
    "w_norm": "norm",
    "dora_scale": "DoRA",
}


def kind_of(parameters: Mapping[str, Tensor]) -> ModuleType | str:
    """The module of the kind of network these parameter names belong to, or the name of a kind that is not supported."""
    for marker, name in _NOT_YET.items():
        if marker in parameters:
            return name
    names = set(parameters)
    for kind in KINDS:
        if any(required <= names <= required | kind.OPTIONAL for required in kind.REQUIRED):
            return kind
    return "unknown"


def layer_factors(layer_key: str, parameters: Mapping[str, Tensor], source: str) -> Factors:
    """The delta of one layer at weight 1, in fp32: up `[d_out, r]`, down `[r, d_in]`.

    Args:
        layer_key: the layer, for messages
        parameters: parameter name -> tensor, as the file has them
        source: the file, for messages

    Raises:
        LoraclrError: the kind of network is not supported, or the shapes of the tensors do not fit each other
    """
    kind = kind_of(parameters)
    if isinstance(kind, str):
        article = "an" if kind.lstrip("(")[0] in "aeiouAEIOU" else "a"
        raise LoraclrError(
            f"{source} is {article} {kind} network in {layer_key} ({', '.join(sorted(parameters))}): "
            "only LoRA and LoCon can be merged so far; leave this file out."
        )
    try:
        return kind.factors({name: tensor.to(torch.float32) for name, tensor in parameters.items()})
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(parameters.items()))
        raise LoraclrError(f"{source}: the tensors of {layer_key} do not fit each other ({shapes}).") from error
