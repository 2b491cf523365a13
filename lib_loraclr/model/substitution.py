"""Run a model with changed weights, without changing them.

While a context is open, every layer with a delta computes with `W + delta`; the parameter itself is never written, so that
it is restored bit for bit on success, error and interrupt alike. The sum is made when the layer runs and dropped
right after: a second copy of the model never exists. Where the factors require gradients, they get them, and a layer computes
`x W^T + (x down^T) up^T` wherever that is less work (`side_branch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .low_rank import Deltas, Factors
from .side_branch import has_branches, is_cheaper, with_branch

#: channels that a UNet reads: latents; and for inpainting also a mask, and the latents of what it leaves
LATENT_CHANNELS, INPAINTING_CHANNELS = 4, 9

#: (module, positional arguments, keyword arguments) of a call -> what the layer multiplies with its weight
Observation = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Tensor]


def first_argument(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The input of a module that computes with nothing but what it is called with first."""
    return arguments[0] if arguments else next(iter(named.values()))


def latents(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Of what the first convolution of an inpainting UNet reads, the latents."""
    return first_argument(module, arguments, named)[:, :LATENT_CHANNELS]


_ONE = torch.ones(1, 1)


def always_one(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The input of a vector: what a bias is multiplied with, and a norm's weight on the average, its input being normalised."""
    return _ONE


def _not_cast() -> None:
    return None


@dataclass(frozen=True)
class Layer:
    """Where a layer's weight lives in the loaded model.

    Attributes:
        module: the module whose call uses the weight; forward hooks go here
        owner: the module that holds the parameter (the same one, except inside `nn.MultiheadAttention`)
        parameter: its name in `owner`
        rows: the rows of the parameter that are this layer's, where several layers are packed into one
        observed: what of a call of `module` is this layer's input; asked before the call, with changed weights in place
        channels: how many of a convolution's channels are this layer's, from the first on, where not all
        cast: what precision the host casts the module's parameters to for the call that is about to begin; None for none
    """

    module: nn.Module
    owner: nn.Module
    parameter: str = "weight"
    rows: slice | None = None
    observed: Observation = first_argument
    channels: int | None = None
    cast: Callable[[], torch.dtype | None] = _not_cast

    @classmethod
    def of(cls, module: nn.Module) -> Layer:
        return cls(module, module)

    @property
    def weight(self) -> Tensor:
        """The weight itself, `[d_out, d_in]` or `[d_out, c_in, k, k]`; of a vector `[d]`."""
        parameter = getattr(self.owner, self.parameter)
        parameter = parameter if self.rows is None else parameter[self.rows]
        return parameter if self.channels is None else parameter[:, : self.channels]

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)`, a convolution's kernel flattened; of a vector `(d, 1)`."""
        weight = self.weight
        return weight.shape[0], weight[0].numel()

    @property
    def is_vector(self) -> bool:
        """Whether it is a bias or a norm's weight, which merges as a layer whose one input is always 1."""
        return self.weight.dim() == 1


def adaptable_layers(module: nn.Module) -> dict[str, Layer]:
    """What of a module LoRA files can change: `""` for its weight, `".bias"` for its bias (`files.bias_key`).

    Of an inpainting UNet's first convolution that is what reads latents, as in the WebUI (`networks.network_apply_weights`).
    """
    found = {}
    if isinstance(module, nn.Conv2d) and module.in_channels == INPAINTING_CHANNELS:
        found[""] = Layer(module, module, channels=LATENT_CHANNELS, observed=latents)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        found[""] = Layer.of(module)
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
        found[""] = Layer(module, module, observed=always_one)
    if found and module.bias is not None:
        found[".bias"] = Layer(module, module, "bias", observed=always_one)
    return found


@contextmanager
def substituted(layers: Mapping[str, Layer], deltas: Deltas, device: torch.device) -> Iterator[None]:
    """Run the model with `W + up @ down` in every layer named in `deltas`.

    Args:
        layers: layer key -> layer of the model
        deltas: layer key -> factors, up `[d_out, r]`, down `[r, d_in]`; or several, all added. They may lie anywhere
        device: that the model runs on, to which they are copied for as long as the context is open. Not that of its weights: a
            host may keep those elsewhere while they are not in use

    Raises:
        KeyError: a delta names a layer that the model does not have
    """
    by_parameter: dict[tuple[nn.Module, nn.Module, str], list[tuple[Layer, Factors]]] = {}
    for key, delta in deltas.items():
        layer = layers[key]
        parts = by_parameter.setdefault((layer.module, layer.owner, layer.parameter), [])
        several = delta if isinstance(delta, tuple) else (delta,)
        parts += [(layer, factors.to(device)) for factors in several]
    with ExitStack() as stack:
        for (module, owner, name), parts in by_parameter.items():
            stack.enter_context(_substituted_parameter(module, owner, name, parts))
        yield


@contextmanager
def _substituted_parameter(
    module: nn.Module, owner: nn.Module, name: str, parts: list[tuple[Layer, Factors]]
) -> Iterator[None]:
    beside: list[Tensor] = []  # the input of a call that has a branch beside it, until it ends
    branches = _branches(module, owner, name, parts)

    # nn.Module keeps parameters in a dictionary of its own and finds them by __getattr__, which Python asks last:
    # an entry in the instance's __dict__ shadows the parameter, and the parameter stays where it is.
    def put(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        # a context opened inside this one has its hook before ours, and is what counts
        if name in owner.__dict__:
            return
        weight = owner._parameters[name]
        if branches and _branch_is_better(module, x := first_argument(module, arguments, named), weight, branches):
            beside.append(x)
            owner.__dict__[name] = weight  # says to contexts around this one that the call is taken care of
        else:
            owner.__dict__[name] = _changed_weight(weight, parts)

    def take_back(module: nn.Module, _: object, output: Tensor | None) -> Tensor | None:
        owner.__dict__.pop(name, None)
        x = beside.pop() if beside else None
        if x is None or output is None:  # no output: the call failed
            return None
        with _without_autocast():  # in the output's own precision, whatever that is
            for delta in branches:
                output = with_branch(module, x, output, delta)
        return output

    # First in line, so that whoever observes the call sees the changed weight, whichever context was opened first;
    # and taken back after a call that failed too (recomputing a checkpointed block ends early by an exception).
    handles = [
        module.register_forward_pre_hook(put, prepend=True, with_kwargs=True),
        module.register_forward_hook(take_back, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        owner.__dict__.pop(name, None)
        beside.clear()


def _branches(module: nn.Module, owner: nn.Module, name: str, parts: list[tuple[Layer, Factors]]) -> list[Factors]:
    """The deltas that could be branches beside the module: where gradients are wanted, and all of one weight is changed."""
    whole = module is owner and name == "weight" and all(part.rows is part.channels is None for part, _ in parts)
    deltas = [factors for _, factors in parts]
    trained = any(factors.up.requires_grad or factors.down.requires_grad for factors in deltas)
    return deltas if whole and trained and has_branches(module) else []


def _branch_is_better(module: nn.Module, x: Tensor, weight: Tensor, deltas: list[Factors]) -> bool:
    """Without gradients a weight is changed as whoever loads the file changes it, rounding included; and rounded to bf16, which
    has eight bits, a small change would be gone."""
    if not torch.is_grad_enabled():
        return False
    return weight.dtype == torch.bfloat16 or all(is_cheaper(module, x, delta) for delta in deltas)


def _changed_weight(weight: Tensor, parts: list[tuple[Layer, Factors]]) -> Tensor:
    """`weight` plus the deltas of its parts, in the precision that it is used in.

    They are added in fp32 and rounded once. Only factors that are trained, and are in the weight's own precision, are added in
    that: a matrix in fp32 of each weight, made, rounded and kept, would be most of what a pass takes beside the model itself.
    """
    in_own = torch.is_grad_enabled() and all(f.up.requires_grad and f.up.dtype == weight.dtype for _, f in parts)
    with _without_autocast():
        # Forge keeps weights that a card has no room for in the computer's memory
        changed = weight.to(parts[0][1].up.device, weight.dtype if in_own else torch.float32)
        for layer, factors in parts:
            if layer.channels is not None:
                halves = (_added(changed[:, : layer.channels], factors), changed[:, layer.channels :])
                changed = torch.cat(halves, dim=1)
            elif layer.rows is None:
                changed = _added(changed, factors)
            else:
                start, stop, _ = layer.rows.indices(len(changed))
                changed = torch.cat([changed[:start], _added(changed[start:stop], factors), changed[stop:]])
        return changed.to(parts[0][0].cast() or weight.dtype)


def _added(weight: Tensor, factors: Factors) -> Tensor:
    """`weight + up @ down` in the weight's precision, with no second matrix of its size."""
    flat = weight.reshape(len(weight), -1)
    return torch.addmm(flat, factors.up.to(flat.dtype), factors.down.to(flat.dtype)).view_as(weight)


def _without_autocast() -> AbstractContextManager[object]:
    """A host may run its model under autocast, which would multiply in half precision whatever it is given."""
    return torch.autocast("cuda", enabled=False) if torch.is_autocast_enabled() else nullcontext()
