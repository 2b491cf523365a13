"""The engines of Forge and reForge, by what they offer and not by a version: their modules, the loaded model and its parts.

Forge's is `backend`, and its model no `nn.Module`; reForge's is `ldm_patched`, inside the model of AUTOMATIC1111's WebUI. In
both, `forge_objects_original` are what a picture starts from; `forge_objects` are copies of these patchers that LoRAs and
extensions changed, around the same modules.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LoraclrError
from .. import webui

#: module of Forge's `backend` -> of reForge's `ldm_patched`
_REFORGE = {
    "attention": "ldm.modules.attention",
    "memory_management": "modules.model_management",
    "modules.k_prediction": "modules.model_sampling",
    "nn.unet": "ldm.modules.attention",
    "patcher.lora": "modules.lora",
}


def is_here() -> bool:
    """Whether the WebUI that this runs in keeps its models in one of these engines."""
    return is_forge() or is_reforge()


def is_forge() -> bool:
    """Whether the engine is Forge's."""
    return hasattr(webui.module("sd_models"), "forge_model_reload")


def is_reforge() -> bool:
    """Whether it is reForge's, which reads LoRAs in another way than Forge Classic's of the same name."""
    return "ldm_patched.modules.weight_adapter" in sys.modules


def _full_name(name: str) -> str:
    return f"backend.{name}" if is_forge() else f"ldm_patched.{_REFORGE.get(name, name)}"


def module(name: str) -> ModuleType:
    """`backend.<name>` of the engine, or what reForge has in its place."""
    return importlib.import_module(_full_name(name))


def loaded(name: str) -> ModuleType | None:
    """`module` if something has imported it, which is so of what the loaded model runs on."""
    return sys.modules.get(_full_name(name))


def chosen_model() -> Any:
    """The model that is loaded, if it is what is chosen at the top left; None else."""
    if not is_forge():
        return webui.chosen_model()
    data = webui.module("sd_models").model_data
    model = data.sd_model
    # before the first picture something stands there that has no parts
    if getattr(model, "forge_objects_original", None) is None:
        return None
    return model if str(data.forge_loading_parameters) == data.forge_hash else None


def load_chosen_model() -> Any:
    """The model that is chosen at the top left, loaded if that was put off until the first picture, or after a refiner.

    Raises:
        LoraclrError: there is none, or it cannot be loaded
    """
    if not is_forge():
        model = webui.load_chosen_model()
        _end_tiling(model)
        return model
    models = webui.module("sd_models")
    try:
        model, _ = models.forge_model_reload()
    except Exception as error:
        raise LoraclrError(
            f"Forge cannot load the checkpoint that is chosen at the top left ({error}): choose another one."
        ) from error
    if getattr(model, "forge_objects_original", None) is None:
        raise LoraclrError("Forge has no checkpoint loaded: choose one at the top left.")
    _end_tiling(model)
    return model


def _end_tiling(model: Any) -> None:
    """Switch off the last picture's tiling, as a picture leaves it to the next one to do; Forge itself no longer tiles."""
    for name in ("utils", "forge_util"):
        switch = getattr(sys.modules.get(f"modules_forge.{name}"), "apply_circular_forge", None)
        if switch is not None:
            switch(model, False)


def unet(model: Any) -> nn.Module:
    """The UNet inside Forge's `KModel`, or reForge's `BaseModel`."""
    return model.forge_objects_original.unet.model.diffusion_model


def computation_dtype(model: Any) -> torch.dtype:
    """What the UNet computes in."""
    kernel = model.forge_objects_original.unet.model
    if hasattr(kernel, "computation_dtype"):
        return kernel.computation_dtype
    return kernel.manual_cast_dtype or kernel.get_dtype()


def sigmas(model: Any) -> Tensor:
    """The noise schedule, `[1000]`, without what a picture changes of it for itself."""
    return _predictor(model).sigmas.detach().float().cpu().clone()


def _predictor(model: Any) -> Any:
    kernel = model.forge_objects_original.unet.model
    return getattr(kernel, "predictor", None) or kernel.model_sampling


def prediction_type(model: Any) -> str:
    """What the UNet predicts: `epsilon`, `v_prediction`, or something else by the engine's name for it."""
    predictor = _predictor(model)
    if hasattr(predictor, "prediction_type"):
        discrete = hasattr(predictor, "alphas_cumprod")
        return predictor.prediction_type if discrete else f"{predictor.prediction_type} at continuous times"
    # a class put together of one for its times and one for what is predicted (`model_base.model_sampling`)
    times, predicted = (kind.__name__ for kind in type(predictor).__bases__)
    known = {"V_PREDICTION": "v_prediction", "EPS": "epsilon"}
    return known.get(predicted, predicted) if times == "ModelSamplingDiscrete" else f"{predicted} by {times}"


def text_encoders(model: Any) -> nn.Module:
    """The text encoders, by their names (`clip_l`, `clip_g`, `clip_h`); a family has one or two."""
    return model.forge_objects_original.clip.cond_stage_model


def text_engines(model: Any) -> dict[str, Any]:
    """Name of a text encoder -> what reads prompts with it."""
    found = {}
    for attribute in ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g"):
        engine = getattr(model, attribute, None)
        if engine is not None:
            found[engine.embedding_key] = engine
    return found


def patchers(model: Any) -> list[Any]:
    """What moves and patches the UNet and the text encoders."""
    return [model.forge_objects_original.unet, model.forge_objects_original.clip.patcher]
