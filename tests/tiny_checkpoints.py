"""Checkpoints of every family with random weights: real names and topology, tiny widths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import tiny_names as names
from tests.tiny_names import UNetSizes

#: of CLIP's text encoder (the demo checkpoint's, so that its configuration serves), of OpenCLIP's, of one number of the size
CLIP_WIDTH, OPEN_CLIP_WIDTH, SIZE_WIDTH = 128, 64, 32
VAE_WIDTH = 32
#: layers of the text encoders
CLIP_LAYERS, OPEN_CLIP_LAYERS = 4, 3


@dataclass(frozen=True)
class Tiny:
    """A kind of checkpoint.

    Attributes:
        name: of its file
        family: the name of its family
        sizes: of its UNet
        clip, open_clip: prefixes of its text encoders' tensors; empty where it has none
        markers: tensors that say how it was trained
        velocity: whether its configuration says so
    """

    name: str
    family: str
    sizes: UNetSizes
    clip: str = ""
    open_clip: str = ""
    markers: tuple[str, ...] = ()
    velocity: bool = False

    def inpainting(self) -> Tiny:
        return replace(self, name=f"{self.name}-inpainting", sizes=replace(self.sizes, inputs=9))

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """Random weights of which none is zero.

        The text encoders' positions get a mean: the WebUI's emphasis divides by the mean of what they put out.
        """
        generator = torch.Generator().manual_seed(seed)
        result = {name: torch.zeros(1) for name in self.markers}
        for name, shape in self._shapes():
            random = torch.randn(shape, generator=generator)
            if "position" in name:
                random = 0.5 + 0.1 * random
            elif len(shape) >= 2:
                random = random / max(1, random[0].numel()) ** 0.5
            else:
                random = 0.1 * random + (1.0 if name.endswith(("weight", "scale")) else 0.0)
            result[name] = random
        # the VAE says of its latents that it is sure of them: the WebUI draws an inpainting model's from what it says
        result["first_stage_model.quant_conv.weight"][4:] = 0
        result["first_stage_model.quant_conv.bias"][4:] = -30
        return result

    def _shapes(self) -> names.Shapes:
        yield from names.unet(self.sizes)
        if self.clip:
            yield from names.clip(self.clip, CLIP_WIDTH, CLIP_LAYERS)
        if self.open_clip:
            yield from names.open_clip(self.open_clip, OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS)
        yield from names.vae(VAE_WIDTH)

    def write(self, folder: Path) -> Path:
        """The single file, without a configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors(), folder / f"{self.name}.safetensors")
        return folder / f"{self.name}.safetensors"


SD1 = Tiny(
    "tiny-sd1",
    "SD1",
    UNetSizes((32, 64), (1, 0), 1, CLIP_WIDTH, linear=False),
    clip="cond_stage_model.transformer.",
)
SD2 = Tiny(
    "tiny-sd2",
    "SD2",
    UNetSizes((64, 128), (1, 0), 1, OPEN_CLIP_WIDTH, linear=True),
    open_clip="cond_stage_model.model.",
)
SD2_V = replace(SD2, name="tiny-sd2-v", velocity=True)
SDXL = Tiny(
    "tiny-sdxl",
    "SDXL",
    UNetSizes(
        (32, 64, 64),
        (0, 1, 2),
        2,
        CLIP_WIDTH + OPEN_CLIP_WIDTH,
        linear=True,
        vector=OPEN_CLIP_WIDTH + 6 * SIZE_WIDTH,
    ),
    clip="conditioner.embedders.0.transformer.",
    open_clip="conditioner.embedders.1.model.",
)
SDXL_V = replace(SDXL, name="tiny-sdxl-v", markers=("v_pred", "ztsnr"))
REFINER = Tiny(
    "tiny-refiner",
    "SDXL refiner",
    UNetSizes((32, 64, 64), (0, 1, 0), 1, OPEN_CLIP_WIDTH, linear=True, vector=OPEN_CLIP_WIDTH + 5 * SIZE_WIDTH),
    open_clip="conditioner.embedders.0.model.",
)
EVERY = (SD1, SD2, SDXL, SDXL_V, REFINER, SD1.inpainting(), SD2.inpainting(), SDXL.inpainting())


#: what `sd_xl_base.yaml`, `v2-inference-v.yaml` and others say that the tensors do not; enough for the stand-alone host
def velocity_yaml(tiny: Tiny) -> str:
    """The beginning of a configuration that says what the network predicts, as ldm's and sgm's do."""
    if tiny.family.startswith("SDXL"):
        name = "VScaling" if tiny.velocity else "EpsScaling"
        scaling = f"{{target: sgm.modules.diffusionmodules.denoiser_scaling.{name}}}"
        return f"model: {{params: {{denoiser_config: {{params: {{scaling_config: {scaling}}}}}}}}}\n"
    return f"model: {{params: {{parameterization: {'v' if tiny.velocity else 'eps'}}}}}\n"
