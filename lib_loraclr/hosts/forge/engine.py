"""Forge's engine, by what it offers and not by a version: its modules, the loaded model and its parts.

An engine's `forge_objects_original` are what a picture starts from; `forge_objects` are copies of these patchers that LoRAs and
extensions changed, around the same modules.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from torch import nn

from ...errors import LoraclrError
from .. import webui


def is_here() -> bool:
    """Whether the WebUI that this runs in keeps its models in Forge's engine."""
    return hasattr(webui.module("sd_models"), "forge_model_reload")


def module(name: str) -> ModuleType:
    """`backend.<name>` of the engine."""
    return importlib.import_module(f"backend.{name}")


def loaded(name: str) -> ModuleType | None:
    """`backend.<name>` if something has imported it, which is so of what the loaded model runs on."""
    return sys.modules.get(f"backend.{name}")


def chosen_model() -> Any:
    """The model that is loaded, if it is what is chosen at the top left; None else."""
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
    models = webui.module("sd_models")
    try:
        model, _ = models.forge_model_reload()
    except Exception as error:
        raise LoraclrError(
            f"Forge cannot load the checkpoint that is chosen at the top left ({error}): choose another one."
        ) from error
    if getattr(model, "forge_objects_original", None) is None:
        raise LoraclrError("Forge has no checkpoint loaded: choose one at the top left.")
    return model


def unet(model: Any) -> nn.Module:
    """The UNet inside Forge's `KModel`."""
    return model.forge_objects_original.unet.model.diffusion_model


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
