"""The WebUI's own modules, asked for when they are needed.

Nothing of the WebUI is imported when this package is: the extension's script has to load where the built-in Lora extension
is switched off, and the tests have to run where there is no WebUI at all.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from ...errors import LoraclrError


def module(name: str) -> ModuleType:
    """`modules.<name>` of the WebUI.

    Raises:
        LoraclrError: this process is not the WebUI
    """
    try:
        return importlib.import_module(f"modules.{name}")
    except ImportError as error:
        raise LoraclrError(
            f"The WebUI's module {name} cannot be imported ({error}): this works inside the WebUI only; "
            "elsewhere use the command line (python -m lib_loraclr)."
        ) from error


def refuse_forge() -> None:
    """Forge and its descendants (reForge, Forge Classic) have modules of the same names and models of another build.

    Raises:
        LoraclrError: this process is one of them
    """
    if "modules_forge" in sys.modules:
        raise LoraclrError(
            "LoRACLR does not merge inside Forge, reForge or Forge Classic yet, which keep their models in another way: "
            "merge in AUTOMATIC1111's WebUI 1.10, or on the command line (python -m lib_loraclr merge). "
            "The merged file then works here too."
        )


def lora_extension() -> ModuleType:
    """`networks` of the WebUI's built-in extension Lora.

    Raises:
        LoraclrError: the extension is switched off, or this process is not the WebUI
    """
    module("shared")
    refuse_forge()
    try:
        return importlib.import_module("networks")
    except ImportError as error:
        raise LoraclrError(
            "The WebUI's built-in extension Lora is switched off, and without it there are no LoRAs to merge: "
            "switch it on under Extensions > Installed, and restart."
        ) from error


def loaded_model() -> nn.Module:
    """The checkpoint that is loaded; it is loaded now if that had been put off.

    Raises:
        LoraclrError: none could be loaded
    """
    sd_models = module("sd_models")
    # where there is none, asking for it makes the WebUI look for one, in vain, and fill its log with that
    there = sd_models.model_data.sd_model is not None or sd_models.checkpoints_list
    model = module("shared").sd_model if there else None
    if model is None:
        raise LoraclrError("The WebUI has no checkpoint loaded: choose one at the top left.")
    return model


def caption_font() -> str | None:
    """The TrueType file that the WebUI writes on its grids with, which any picture of ours is to look like."""
    file = module("paths_internal").roboto_ttf_file
    return file if Path(file).is_file() else None
