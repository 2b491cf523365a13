"""Makes Forge and Forge Neo recognise the tests' tiny checkpoints, inside them, before one is loaded.

They tell a checkpoint's family by the sizes of its UNet, and take those of its other parts from a folder of configurations.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import tiny_checkpoints as tiny

#: of the demo checkpoint
DEMO_UNET = {"context_dim": tiny.CLIP_WIDTH, "model_channels": 64}
DEMO_VAE, DEMO_SCALE = 64, 0.80417
#: of the tiny SDXL checkpoint
XL_UNET = {
    "model_channels": tiny.SDXL.sizes.channels[0],
    "context_dim": tiny.CLIP_WIDTH + tiny.OPEN_CLIP_WIDTH,
    "adm_in_channels": tiny.SDXL.sizes.vector,
    "transformer_depth": [0, 0, 1, 1, 2, 2],
}
#: of its second text encoder, as transformers calls them
OPEN_CLIP = {
    "hidden_size": tiny.OPEN_CLIP_WIDTH,
    "intermediate_size": 4 * tiny.OPEN_CLIP_WIDTH,
    "num_attention_heads": 1,
    "num_hidden_layers": tiny.OPEN_CLIP_LAYERS,
    "projection_dim": tiny.OPEN_CLIP_WIDTH,
}


def recognise(clip: str, folder: str) -> None:
    """Tell it of the sizes that the tests made up.

    Args:
        clip: folder with CLIP's tokenizer and sizes
        folder: where the configurations are written
    """
    from huggingface_guess import model_list

    sd1, xl = model_list.SD15, model_list.SDXL
    sd1.unet_config = {**sd1.unet_config, **DEMO_UNET}
    sd1.unet_extra_config = {**sd1.unet_extra_config, "num_heads": 4}
    sd1.latent_format = _scaled(sd1.latent_format)
    sizes = {"block_out_channels": [DEMO_VAE] * 4, "layers_per_block": 0, "scaling_factor": DEMO_SCALE}
    _describe(sd1, Path(clip), Path(folder) / "sd1", sizes)
    xl.unet_config = {**xl.unet_config, **XL_UNET}
    _describe(
        xl, Path(clip), Path(folder) / "sdxl", {"block_out_channels": [tiny.VAE_WIDTH] * 4, "layers_per_block": 1}
    )
    _narrow_size_embedding()


def _scaled(latents: type) -> type:
    """Latents of the demo checkpoint's scale, which Forge Neo takes from there and not from the configuration."""

    class Scaled(latents):
        def __init__(self) -> None:
            super().__init__()
            self.scale_factor = DEMO_SCALE

    return Scaled


def _describe(model: Any, clip: Path, folder: Path, vae: dict[str, Any]) -> None:
    """The folder that a family's parts are described in, with the tests' sizes.

    Args:
        model: of `model_list`; its `huggingface_repo` becomes the folder
        vae: what changes in the VAE's configuration
    """
    from backend import loader

    original = Path(loader.__file__).with_name("huggingface") / model.huggingface_repo
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    # an absolute path stays what it is where it is joined to another
    model.huggingface_repo = str(folder)
    _change(folder / "vae" / "config.json", vae)
    text = json.loads((clip / "config.json").read_text("utf-8"))
    _change(folder / "text_encoder" / "config.json", text)
    if (folder / "text_encoder_2").is_dir():
        _change(folder / "text_encoder_2" / "config.json", OPEN_CLIP)


def _change(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def _narrow_size_embedding() -> None:
    """SDXL's embedding of each number of a picture's size, whose width no configuration has."""
    from backend.diffusion_engine import sdxl

    whole = sdxl.Timestep
    sdxl.Timestep = lambda width: whole(tiny.SIZE_WIDTH)
