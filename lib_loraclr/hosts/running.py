"""The WebUI that this runs in: the one place that chooses the host of its loaded checkpoint, and what the doors use of it.

with session() as host:
    merge = merge_loras(request, host, StateProgress())
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from ..errors import LoraclrError
from ..model import Family, Host
from . import a1111, forge, webui
from .webui import (
    InstalledCheckpoint,
    InstalledLora,
    StateProgress,
    announce_checkpoint,
    caption_font,
    checkpoint_dir,
    find_lora,
    free_checkpoint_name,
    free_name,
    installed_loras,
    lora_dir,
    make_temporary_folder,
    previews,
)

__all__ = [
    "InstalledCheckpoint",
    "InstalledLora",
    "StateProgress",
    "announce",
    "announce_checkpoint",
    "caption_font",
    "checkpoint_dir",
    "find_lora",
    "free_checkpoint_name",
    "free_name",
    "installed_loras",
    "loaded_family",
    "lora_dir",
    "make_temporary_folder",
    "peek",
    "previews",
    "session",
]


def _host() -> ModuleType:
    """The package whose models this WebUI has; it is asked for what it offers, not for its name or version.

    Raises:
        LoraclrError: its models are of a kind that no host here knows
    """
    if forge.is_here():
        return forge
    # Forge Classic: A1111's own model, whose layers and LoRAs another library runs
    if "ldm_patched" in sys.modules:
        raise LoraclrError(
            "LoRACLR does not merge inside Forge Classic, which keeps its models in another way: merge in AUTOMATIC1111's WebUI "
            "1.10, in Forge or reForge, or on the command line (python -m lib_loraclr merge). The merged file then works here "
            "too."
        )
    return a1111


def session(*, lock_held: bool = False, job: str = "LoRACLR") -> AbstractContextManager[Host]:
    """The chosen checkpoint with its base weights, for as long as the context is open.

    Args:
        lock_held: the caller holds `queue_lock` already and has begun a job (`wrap_gradio_gpu_call` does both)
        job: what the WebUI calls the job otherwise

    Raises:
        LoraclrError: no checkpoint is loaded, LoRAs of its kind cannot be merged, or the built-in Lora is switched off
    """
    return _host().session(lock_held=lock_held, job=job)


def peek() -> Host | None:
    """The loaded checkpoint, to be asked what it is and which layers it has, not to be run; None where none is loaded yet.

    Raises:
        LoraclrError: as of `session`
    """
    return _host().peek()


def loaded_family() -> Family | None:
    """What the loaded checkpoint's LoRAs are made for; None where none is loaded yet, or LoRAs of its kind cannot be merged."""
    return _host().loaded_family()


def announce(path: Path, *, lock_held: bool = False) -> InstalledLora:
    """Make the WebUI take notice of a LoRA that was written or overwritten.

    Args:
        lock_held: the caller holds `queue_lock`

    Raises:
        LoraclrError: the file is not in a folder that the WebUI lists
    """
    return webui.announce(path, _host().forget, lock_held=lock_held)
