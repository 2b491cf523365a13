"""What stands between Forge's modules and a backward pass, taken out of the way for a while.

Forge loads and moves its models under `torch.inference_mode`, of whose tensors autograd saves none, and its UNet adds in place to
what a norm has saved. reForge does neither; there this freezes the parameters, and copies what need not be copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .. import webui
from . import engine

#: blocks of the UNet whose activations are worth recomputing
BLOCKS = {"BasicTransformerBlock", "ResBlock"}
#: what the UNet's blocks call for attention, in Forge and in reForge
_ATTENTIONS = ("attention_function", "optimized_attention", "optimized_attention_masked")
#: what those begin with that have no backward pass
_ONE_WAY = ("attention_sage", "attention_flash")
#: of the free memory, what attention may plan with while other things are put there
_SHARE = 0.5


class Thawed:
    """Parameters in tensors that autograd may save, which share the memory of Forge's own; none of them collects a gradient.

    Forge must not move or patch the models meanwhile, for it would do so to these; around what it does with other models, such as
    decoding, they are put back (`frozen`).
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self._parts = list(parts)
        self._theirs: list[tuple[nn.Module, str, nn.Parameter]] = []

    def __enter__(self) -> Thawed:
        ours: dict[int, nn.Parameter] = {}
        for part in self._parts:
            for module in part.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        self._theirs.append((module, name, parameter))
                        # one that two modules share stays one
                        if id(parameter) not in ours:
                            ours[id(parameter)] = nn.Parameter(_thawed(parameter), requires_grad=False)
        for module, name, parameter in self._theirs:
            module._parameters[name] = ours[id(parameter)]
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, parameter in self._theirs:
            module._parameters[name] = parameter
        self._theirs.clear()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, the parameters are Forge's own."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


def _thawed(parameter: nn.Parameter) -> Tensor:
    """A tensor over the same memory that was not made under `inference_mode`."""
    tensor = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        return tensor.set_(
            parameter.untyped_storage(), parameter.storage_offset(), parameter.size(), parameter.stride()
        )


@contextmanager
def copied_before_norms(unet: nn.Module) -> Iterator[None]:
    """Norms of the UNet compute with a copy of what they are given, to which the block around them adds in place.

    Needed during the backward pass as well, where blocks are recomputed: without it the gradients are wrong and nothing says so.
    """

    def copy(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (given[0].clone(), *given[1:]) if torch.is_grad_enabled() and given[0].requires_grad else None

    handles = [module.register_forward_pre_hook(copy) for module in unet.modules() if isinstance(module, nn.LayerNorm)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recomputing(unet: nn.Module) -> Iterator[None]:
    """Non-re-entrant checkpointing of the UNet's blocks; those of Forge's transformer add to their input in place."""
    with ExitStack() as stack:
        stack.enter_context(_steady_memory())
        for block in unet.modules():
            if type(block).__name__ in BLOCKS:
                stack.enter_context(webui.recomputed(block, copied=True))
        yield


@contextmanager
def _steady_memory() -> Iterator[None]:
    """One figure for the free memory, by which some attention cuts its work; recomputed it has to be cut as at first."""
    memory = engine.module("memory_management")
    ask = memory.get_free_memory

    def steady(device: torch.device | None = None, torch_free_too: bool = False) -> int | tuple[int, int]:
        free = int(_SHARE * known.setdefault(device, ask(device)))
        return (free, 0) if torch_free_too else free

    known: dict[torch.device | None, int] = {}
    memory.get_free_memory = steady
    try:
        yield
    finally:
        memory.get_free_memory = ask


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """PyTorch's attention in place of one without a backward pass, as SageAttention's and FlashAttention's are used there."""
    attention, blocks = engine.module("attention"), engine.loaded("nn.unet")
    used = {name: getattr(blocks, name) for name in _ATTENTIONS if hasattr(blocks, name)}
    replaced = {name: f for name, f in used.items() if getattr(f, "__name__", "").startswith(_ONE_WAY)}
    for name in replaced:
        setattr(blocks, name, attention.attention_pytorch)
    try:
        yield
    finally:
        for name, function in replaced.items():
            setattr(blocks, name, function)
