"""Makes reForge recognise the tests' tiny checkpoints, inside it, before one is loaded.

It tells a checkpoint's family by the sizes of its UNet, and has those of its other parts written down in its code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forge_sizes import DEMO_SCALE, DEMO_UNET, DEMO_VAE, OPEN_CLIP, XL_UNET


def recognise(clip: str) -> None:
    """Tell it of the sizes that the tests made up.

    Args:
        clip: folder with CLIP's sizes
    """
    from ldm_patched.modules import latent_formats, sd1_clip, supported_models

    sd1, xl = supported_models.SD15, supported_models.SDXL
    sd1.unet_config = {**sd1.unet_config, **DEMO_UNET}
    sd1.unet_extra_config = {**sd1.unet_extra_config, "num_heads": 4}
    sd1.latent_format = staticmethod(lambda: latent_formats.SD15(DEMO_SCALE))
    xl.unet_config = {**xl.unet_config, **XL_UNET}
    _small_vae()
    build, first = sd1_clip.SDClipModel.__init__, json.loads((Path(clip) / "config.json").read_text("utf-8"))

    def small(self: Any, *given: Any, textmodel_json_config: str | None = None, **named: Any) -> None:
        sizes = first
        if textmodel_json_config:  # the second's
            sizes = {**json.loads(Path(textmodel_json_config).read_text("utf-8")), **OPEN_CLIP}
        build(self, *given, textmodel_json_config=sizes, **named)

    sd1_clip.SDClipModel.__init__ = small


def _small_vae() -> None:
    """A VAE as wide as its file's: reForge knows one width."""
    from ldm_patched.modules import sd

    read, build = sd.VAE.__init__, sd.AutoencoderKL
    width = 0

    def of_file(self: Any, sd: Any = None, **named: Any) -> None:
        nonlocal width
        width = sd["decoder.norm_out.weight"].shape[0]
        read(self, sd=sd, **named)

    def small(ddconfig: dict[str, Any], **named: Any) -> Any:
        blocks = 0 if width == DEMO_VAE else 1
        return build(ddconfig={**ddconfig, "ch": width, "ch_mult": [1] * 4, "num_res_blocks": blocks}, **named)

    sd.VAE.__init__, sd.AutoencoderKL = of_file, small
