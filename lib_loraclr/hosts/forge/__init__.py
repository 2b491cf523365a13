"""Host for Forge, Forge Neo and reForge: the checkpoint that their engine has loaded.

    with session() as host:
        merge = merge_loras(request, host, StateProgress())

They keep the names of the modules of AUTOMATIC1111's WebUI, and their models in an engine of their own; what is other in
reForge's is in `engine.py` and `reforge.py`. Importing this imports nothing of them.
"""

from .engine import is_here
from .host import ForgeHost
from .library import forget
from .session import loaded_family, peek, session

__all__ = ["ForgeHost", "forget", "is_here", "loaded_family", "peek", "session"]
