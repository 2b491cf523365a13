"""Host for AUTOMATIC1111's Stable Diffusion WebUI 1.10: the checkpoint that it has loaded.

    with session() as host:
        merge = merge_loras(request, host, StateProgress())

Importing this imports nothing of the WebUI; using it outside the WebUI, or with its built-in extension Lora switched off, raises
`LoraclrError`.
"""

from .host import A1111Host
from .session import forget, loaded_family, peek, session

__all__ = ["A1111Host", "forget", "loaded_family", "peek", "session"]
