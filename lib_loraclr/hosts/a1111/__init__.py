"""Host adapter for AUTOMATIC1111's Stable Diffusion WebUI 1.10.

    with session() as host:
        merge = merge_loras(request, host, StateProgress())

Importing this imports nothing of the WebUI; using it outside the WebUI, or with its built-in extension Lora switched off, raises
`LoraclrError`.
"""

from .checkpoints import InstalledCheckpoint, announce_checkpoint, checkpoint_dir, free_checkpoint_name
from .host import A1111Host
from .library import InstalledLora, announce, find_lora, free_name, installed_loras, lora_dir, lora_dirs, previews
from .progress import StateProgress
from .session import loaded_family, peek, session
from .webui import caption_font, refuse_forge

__all__ = [
    "A1111Host",
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
    "lora_dirs",
    "previews",
    "peek",
    "refuse_forge",
    "session",
]
