"""What each kind of network stores for a layer, and the delta it stands for.

One file per kind, all with the same names: `KIND`, the parameter names `REQUIRED` and `OPTIONAL`, the name `BIAS` of
the bias' delta, `NEEDS_WEIGHT`, and `rank`, `sides` and `delta`. `dora` comes on top of any of them. What a file means is what
the WebUI makes of it (`extensions-builtin/Lora/network_*.py`); everything is linear in the weight of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ...errors import LoraclrError
from ...model import Factors, factored, is_out_of_memory, whole
from . import dora, full, glora, ia3, loha, lokr, lora, norm, oft

#: in the order in which the WebUI asks them (`networks.module_types`)
KINDS: tuple[ModuleType, ...] = (lora, loha, ia3, lokr, full, norm, glora, oft)

#: what a delta without exact low-rank factors may lose by being factored, of its Frobenius norm
ACCURACY = 1e-3


@dataclass(frozen=True)
class LayerDelta:
    """What one layer's parameters stand for at weight 1, in fp32.

    Attributes:
        factors: of the weight's delta, up `[d_out, r]`, down `[r, d_in]`; of a norm's, `d_in` is 1
        bias: of the bias' delta, up `[d_out, 1]`, down `[1, 1]`, where there is one
        loss: what factoring lost, as a share of the delta's Frobenius norm; 0 where the factors are exact
        unused: names of parameters that this kind of network does not use
        by_rows: whether it is a DoRA of lengths per channel that leaves, which the WebUI does not read as it was trained
    """

    factors: Factors
    bias: Factors | None = None
    loss: float = 0.0
    unused: tuple[str, ...] = ()
    by_rows: bool = False


def kind_of(parameters: Mapping[str, Tensor]) -> ModuleType | None:
    """The module of the kind of network that these parameters belong to, None if it is none we know."""
    names = set(parameters)
    return next((kind for kind in KINDS if any(required <= names for required in kind.REQUIRED)), None)


def kind_name(parameters: Mapping[str, Tensor]) -> str:
    """What people call this layer's kind of network."""
    kind = kind_of(parameters)
    if kind is None:
        return "unknown"
    return f"{kind.KIND} with DoRA" if _magnitude(parameters) else kind.KIND


def unused_parameters(kind: ModuleType, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of parameters that this kind of network does not use."""
    required = next(required for required in kind.REQUIRED if required <= set(parameters))
    return tuple(sorted(set(parameters) - required - kind.OPTIONAL))


#: parameters that say how others are to be read
_CHANGING = frozenset({*dora.MAGNITUDES, "lora_mid.weight", "rescale", "hada_t1", "hada_t2", "lokr_t2", "bias"})
#: parameters that stand for a change of their own, or for nothing; where a kind does not use them they are listed
_APART = frozenset({"alpha", "scale", "diff_b", "bias_indices", "bias_values", "bias_size"})
#: all that a kind of network knows
KNOWN_PARAMETERS = frozenset().union(_CHANGING, _APART, *(required for kind in KINDS for required in kind.REQUIRED))


def unapplied_parameters(parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of parameters that change what the others mean, and that no kind of network here applies.

    Whatever nobody knows is one: `lora_E` and rank masks (AdaLoRA), a bias of the factors, magnitudes under a name of their own.
    """
    kind = kind_of(parameters)
    if kind is None:
        return ()
    two = tuple(name for name in dora.MAGNITUDES[1:] if set(dora.MAGNITUDES) <= set(parameters))
    return two + tuple(
        name
        for name in unused_parameters(kind, parameters)
        if not (name in KNOWN_PARAMETERS - _CHANGING or (name == "scalar" and bool((parameters[name] == 1).all())))
    )


def unused_alpha(parameters: Mapping[str, Tensor]) -> bool:
    """Whether the layer's `alpha` plays no part, as in a LoKr whose matrices are whole: it may be anything."""
    kind = kind_of(parameters)
    if kind is None or "alpha" not in parameters:
        return False
    if "scale" in parameters and "scale" in kind.OPTIONAL:
        return kind is not oft
    # OFT's bounds the turn, and what GLoRA's means is not known before the layer's own weight is
    return kind not in (oft, glora) and kind.rank(parameters) is None


def scale_of(kind: ModuleType, parameters: Mapping[str, Tensor], weight: Tensor) -> float:
    """What the delta is multiplied by: `scale`, else `alpha / r` (the WebUI's `NetworkModule.calc_scale`)."""
    if "scale" in parameters and "scale" in kind.OPTIONAL:
        return float(parameters["scale"])
    rank = kind.rank(parameters, weight)
    return float(parameters["alpha"]) / rank if rank is not None and "alpha" in parameters else 1.0


def layer_delta(
    layer_key: str,
    parameters: Mapping[str, Tensor],
    source: str,
    weight: Tensor,
    *,
    dyn: int = 0,
    factor: bool = True,
    device: torch.device | str = "cpu",
) -> LayerDelta:
    """The delta of one layer at weight 1.

    Args:
        layer_key: the layer, for messages
        parameters: parameter name -> tensor, as the file has them
        source: the file, for messages
        weight: the loaded model's own weight of the layer, which some kinds change in proportion to
        dyn: how many of a LoRA's ranks to use, as `dyn=` of a prompt; 0 for all
        factor: whether to look for the least rank of a delta without exact low-rank factors, which is most of the work; else it
            has the highest that it could have
        device: where to compute

    Raises:
        LoraclrError: the kind of network is not supported, a parameter changes what others mean and is not known, the shapes of
            the tensors fit neither each other nor the layer, or the delta is not finite
    """
    kind = kind_of(parameters)
    if kind is None:
        raise LoraclrError(
            f"{source} is of an unknown kind of network in {layer_key} ({', '.join(sorted(parameters))}): "
            f"{', '.join(k.KIND for k in KINDS)} can be merged; leave this file out."
        )
    unapplied = unapplied_parameters(parameters)
    if unapplied:
        raise LoraclrError(
            f"{source} holds {layer_key}.{unapplied[0]}, which changes what the rest of the layer means and cannot be applied: "
            "leave this file out, or have its trainer export it as a plain LoRA."
        )
    unused = unused_parameters(kind, parameters)
    used = {name: t.to(device, torch.float32) for name, t in parameters.items() if name not in unused}
    own = weight.detach().to(device, torch.float32) if kind.NEEDS_WEIGHT or _magnitude(used) else weight
    try:
        delta = _delta(kind, used, own, dyn)
        bias = _vector(used[kind.BIAS]) if kind.BIAS in used else None
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(parameters.items()))
        raise LoraclrError(
            f"{source}: the tensors of {layer_key} do not fit each other or the layer {list(weight.shape)} ({shapes})."
        ) from error
    parts = (delta.up, delta.down) if isinstance(delta, Factors) else (delta,)
    if not all(part.isfinite().all() for part in parts):
        raise LoraclrError(f"{source}: the delta of {layer_key} is not finite on this checkpoint: leave this file out.")
    by_rows = _magnitude(used) and dora.by_rows(used, weight.shape)
    if isinstance(delta, Factors):
        return LayerDelta(delta, bias, 0.0, unused, by_rows)
    factors, loss = factored(delta, ACCURACY) if factor else (whole(delta), 0.0)
    return LayerDelta(factors, bias, loss, unused, by_rows)


def _delta(kind: ModuleType, parameters: Mapping[str, Tensor], weight: Tensor, dyn: int) -> Factors | Tensor:
    """The whole delta: as exact factors where the kind has them, else `[d_out, d_in]`."""
    delta = kind.delta(parameters, weight)
    if dyn and kind is lora and "lora_mid.weight" not in parameters:
        delta = Factors(delta.up[:, :dyn], delta.down[:dyn])
    scale = scale_of(kind, parameters, weight)
    if isinstance(delta, Factors) and not ("bias" in parameters or _magnitude(parameters)):
        exact = delta if delta.rank <= min(delta.shape) else whole(delta.dense())
        return exact.scaled(scale)
    dense = delta.dense() if isinstance(delta, Factors) else delta
    if dense.dim() == 1:
        return _vector(dense * scale)
    dense = dense.flatten(1)
    if "bias" in parameters:
        # not the layer's bias: an addition to the delta, of its shape
        dense = dense + parameters["bias"].reshape(dense.shape)
    dense = dense * scale
    return dora.decomposed(dense, parameters, weight) if _magnitude(parameters) else dense


def _magnitude(parameters: Mapping[str, Tensor]) -> bool:
    return any(name in parameters for name in dora.MAGNITUDES)


def _vector(delta: Tensor) -> Factors:
    """The delta of a parameter `[d]`, as that of a layer with one input."""
    return Factors(delta.reshape(-1, 1), delta.new_ones(1, 1))
