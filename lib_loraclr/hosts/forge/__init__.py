"""Host for Forge and its descendants: the checkpoint that their engine has loaded.

    with session() as host:
        merge = merge_loras(request, host, StateProgress())

Forge keeps the names of the modules of AUTOMATIC1111's WebUI, and its models in an engine of its own (`backend`). Importing this
imports nothing of it.
"""

from .engine import is_here
from .host import ForgeHost
from .library import forget
from .session import loaded_family, peek, session

__all__ = ["ForgeHost", "forget", "is_here", "loaded_family", "peek", "session"]
