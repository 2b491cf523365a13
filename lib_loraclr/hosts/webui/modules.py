"""The WebUI's own modules, asked for when they are needed.

Nothing of the WebUI is imported when this package is: the extension's script has to load where the built-in Lora extension
is switched off, and the tests have to run where there is no WebUI at all.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

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


def lora_extension() -> ModuleType:
    """`networks` of the WebUI's built-in extension Lora.

    Raises:
        LoraclrError: the extension is switched off, or this process is not the WebUI
    """
    module("shared")
    try:
        return importlib.import_module("networks")
    except ImportError as error:
        raise LoraclrError(
            "The WebUI's built-in extension Lora is switched off, and without it there are no LoRAs to merge: "
            "switch it on under Extensions > Installed, and restart."
        ) from error


def caption_font() -> str | None:
    """The TrueType file that the WebUI writes on its grids with, which any picture of ours is to look like."""
    file = module("paths_internal").roboto_ttf_file
    return file if Path(file).is_file() else None


def make_temporary_folder() -> None:
    """Make the folder that gradio's pictures go through on their way to the page, which Forge Neo names and does not make."""
    folder = module("shared").opts.temp_dir
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)


def forget_encoded_prompts() -> None:
    """Drop the cached encodings of prompts, which compare a LoRA's name and not its content."""
    processing = module("processing")
    caches = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
    for owner in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for cache in caches:
            if hasattr(owner, cache):
                # as long as the WebUI has it: Forge's have a third entry
                getattr(owner, cache)[:] = [None] * len(getattr(owner, cache))
