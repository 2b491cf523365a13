"""Stand-alone host: a Stable Diffusion checkpoint in diffusers' models, without a WebUI and without a network.

host = load("model.safetensors")
merge = merge_loras(request, host)
"""

from .host import DiffusersHost
from .layers import model_layers
from .loading import load

__all__ = ["DiffusersHost", "load", "model_layers"]
