"""LoRACLR needs nothing that the WebUI does not have: this installs nothing, is silent, and names what is missing."""

import sys
from importlib.util import find_spec

missing = [name for name in ("torch", "safetensors", "numpy", "PIL", "tqdm") if find_spec(name) is None]
if missing:
    sys.exit(
        f"LoRACLR: missing {', '.join(missing)}; these come with the WebUI, so its own installation is incomplete."
    )
