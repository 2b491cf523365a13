"""Working on the loaded checkpoint between two generations in Forge or reForge, and leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from ...errors import LoraclrError
from ...model import Family
from .. import webui
from . import engine, gradients
from .host import ForgeHost
from .layers import family_of, refuse_quantised
from .reforge import ReforgeHost


@contextmanager
def session(*, lock_held: bool = False, job: str = "LoRACLR") -> Iterator[ForgeHost]:
    """The chosen checkpoint with its base weights, for as long as the context is open.

    Args:
        lock_held: the caller holds `queue_lock` already and has begun a job (`wrap_gradio_gpu_call` does both)
        job: what the WebUI calls the job otherwise

    Raises:
        LoraclrError: no checkpoint is loaded, LoRAs of its kind cannot be merged, or the built-in Lora is switched off
    """
    webui.lora_extension()
    with nullcontext() if lock_held else webui.job(job):
        model, kind = engine.load_chosen_model(), _kind()
        _refuse_what_cannot_be_merged_on(model)
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            stack.callback(webui.module("devices").torch_gc)
            _load_base_weights(model)
            _refuse_text_encoders_elsewhere(model)
            thawed = _Thawed(model)
            stack.enter_context(thawed)
            stack.enter_context(gradients.copied_before_norms(engine.unet(model)))
            stack.enter_context(gradients.differentiable_attention())
            stack.enter_context(kind.reading(model))
            stack.enter_context(webui.whole_precision())
            yield kind(model, thawed)


def peek() -> ForgeHost | None:
    """The loaded checkpoint, to be asked what it is and which layers it has, not to be run; None where none is loaded yet.

    Waits for no picture that is being made.

    Raises:
        LoraclrError: LoRAs of its kind cannot be merged, weights cannot be added to it as it runs, or the built-in Lora is
            switched off
    """
    webui.lora_extension()
    model = engine.chosen_model()
    if model is None:
        return None
    _refuse_what_cannot_be_merged_on(model)
    return _kind()(model)


def _kind() -> type[ForgeHost]:
    return ForgeHost if engine.is_forge() else ReforgeHost


def loaded_family() -> Family | None:
    """What the loaded checkpoint's LoRAs are made for; None where none is loaded yet, or LoRAs of its kind cannot be merged."""
    model = engine.chosen_model()
    try:
        return None if model is None else family_of(model)
    except LoraclrError:
        return None


def _refuse_what_cannot_be_merged_on(model: Any) -> None:
    family_of(model)
    refuse_quantised(model)
    compiled = [part for part in engine.unet(model).modules() if type(part).__name__ == "OptimizedModule"]
    if compiled:
        raise LoraclrError(
            "The UNet is compiled (torch.compile), and a compiled model does not see LoRAs added as it runs: switch that off (in "
            "reForge start without --torch-compile), make a picture, and merge then."
        )


def _load_base_weights(model: Any) -> None:
    """The checkpoint as if the last prompt had named no LoRA, UNet and text encoders together on their device.

    Naming none leaves the last ones in the weights; loading the patchers that have none restores them bit for bit.
    """
    webui.lora_extension().load_networks([], [], [])
    engine.module("memory_management").load_models_gpu(engine.patchers(model))


def _refuse_text_encoders_elsewhere(model: Any) -> None:
    unet, clip = engine.patchers(model)
    if unet.load_device != clip.load_device:
        raise LoraclrError(
            f"The WebUI runs the text encoder on {clip.load_device} and the UNet on {unet.load_device}, and a merge needs both "
            "in one place: start it with --always-gpu or --always-normal-vram."
        )


class _Thawed(gradients.Thawed):
    """The parameters of a model's UNet and text encoders, which are loaded anew after Forge did something else."""

    def __init__(self, model: Any) -> None:
        super().__init__([engine.unet(model), engine.text_encoders(model)])
        self._model = model

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with super().frozen():
            yield
            engine.module("memory_management").load_models_gpu(engine.patchers(self._model))
