"""Working on the loaded checkpoint between two generations, and leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from ...errors import LoraclrError
from ...model import Family
from .. import webui
from .host import A1111Host
from .layers import family_of


@contextmanager
def session(*, lock_held: bool = False, job: str = "LoRACLR") -> Iterator[A1111Host]:
    """The loaded checkpoint with its base weights, for as long as the context is open.

    Args:
        lock_held: the caller holds `queue_lock` already and has begun a job (`wrap_gradio_gpu_call` does both)
        job: what the WebUI calls the job otherwise

    Raises:
        LoraclrError: no checkpoint is loaded, LoRAs of its kind cannot be merged, or the built-in Lora is switched off
    """
    webui.lora_extension()
    with nullcontext() if lock_held else webui.job(job):
        model = _load_what_is_chosen()
        _refuse_what_is_not_torch()
        # the noise schedule may be that of the last picture's own settings, until the next picture begins
        webui.module("sd_models").apply_alpha_schedule_override(model)
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            stack.enter_context(_base_model(model))
            stack.enter_context(_frozen(model))
            stack.enter_context(_untiled(model))
            stack.enter_context(webui.infotext_untouched())
            stack.enter_context(webui.whole_precision())
            yield A1111Host(model)


def _load_what_is_chosen() -> nn.Module:
    """The checkpoint chosen at the top left, as the next picture begins with it: without the last one's tiling."""
    model = webui.load_chosen_model()
    webui.module("sd_hijack").model_hijack.apply_circular(False)
    return model


def peek() -> A1111Host | None:
    """The loaded checkpoint, to be asked what it is and which layers it has, not to be run; None where none is loaded yet.

    Waits for no picture that is being made.

    Raises:
        LoraclrError: LoRAs of its kind cannot be merged, weights cannot be added to it as it runs, or the built-in Lora is
            switched off
    """
    model = webui.chosen_model()
    if model is not None:
        _refuse_what_is_not_torch()
    return None if model is None else A1111Host(model)


def loaded_family() -> Family | None:
    """What the loaded checkpoint's LoRAs are made for; None where none is loaded yet, or LoRAs of its kind cannot be merged."""
    model = webui.chosen_model()
    try:
        return None if model is None else family_of(model)
    except LoraclrError:
        return None


def _refuse_what_is_not_torch() -> None:
    """Refuse a model that does not run in a way that weights can be added to.

    Raises:
        LoraclrError: the model does not run in a way that weights can be added to
    """
    if webui.module("sd_unet").current_unet is not None:
        raise LoraclrError(
            "An SD Unet is active that does not run the checkpoint's own layers (TensorRT, for instance), so no LoRA can be "
            "recorded: set Settings > Stable Diffusion > SD Unet to None."
        )
    if webui.module("devices").fp8:
        raise LoraclrError(
            "The checkpoint's weights are kept in fp8, too coarse to merge on: "
            "set Settings > Optimizations > FP8 weight to Disable."
        )


@contextmanager
def _base_model(model: nn.Module) -> Iterator[None]:
    """The checkpoint as if the last prompt had named no extra network; on exit nothing of ours is left on it."""
    shared, devices, lowvram = webui.module("shared"), webui.module("devices"), webui.module("lowvram")
    hypernetworks = list(shared.loaded_hypernetworks)
    try:
        unload_networks(model)
        shared.loaded_hypernetworks.clear()
        yield
    finally:
        unload_networks(model)
        shared.loaded_hypernetworks[:] = hypernetworks
        if lowvram.is_enabled(model):
            lowvram.send_everything_to_cpu()
        devices.torch_gc()


@torch.no_grad()
def unload_networks(model: nn.Module) -> None:
    """No LoRA active, and none left in the weights.

    The WebUI puts a weight back only when its layer runs next, and not at all under `lora_functional`; here every layer is put
    back at once. A following prompt with the same LoRAs applies them anew to the same weights.
    """
    networks = webui.lora_extension()
    networks.load_networks([])
    for module in getattr(model, "network_layer_mapping", {}).values():
        if getattr(module, "network_current_names", ()) != ():
            networks.network_apply_weights(module)


def forget(name: str) -> None:
    """Drop every copy of a LoRA's old content: parsed, inside the weights, and inside encoded prompts."""
    networks = webui.lora_extension()
    # the key is what a prompt called it, which may be its alias
    for known, network in list(networks.networks_in_memory.items()):
        if network.network_on_disk.name == name:
            networks.networks_in_memory.pop(known)
    data = webui.module("sd_models").model_data
    # the WebUI can hold several checkpoints, each with the weights of the LoRAs it ran last
    for model in {id(model): model for model in (data.sd_model, *data.loaded_sd_models) if model is not None}.values():
        unload_networks(model)
    webui.forget_encoded_prompts()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the checkpoint collects a gradient; the WebUI leaves `requires_grad` on in the UNet."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _untiled(model: nn.Module) -> Iterator[None]:
    """Without the tiles that the built-in extension Hypertile cuts attention into, at random and for the last picture's size."""
    found = (getattr(module, "__webui_hypertile_params", None) for module in model.modules())
    tiled = [parameters for parameters in found if parameters is not None and parameters.enabled]
    for parameters in tiled:
        parameters.enabled = False
    try:
        yield
    finally:
        for parameters in tiled:
            parameters.enabled = True
