"""The families of Stable Diffusion models, as far as a merge needs to know them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of models, as far as the core needs to know it.

    A checkpoint for inpainting is of the family it was made from: the same LoRAs fit both.

    Attributes:
        name: SD1, SD2, SDXL, SDXL refiner
        base_model_version: `ss_base_model_version` of its LoRA files
        architecture: `modelspec.architecture` of its LoRA files, without what they are
        text_encoders: prefixes of the layer keys of its text encoders
        native_size: height and width in pixels of the pictures it was trained on
        webui_version: what the WebUI lists its LoRAs as (`network.SdVersion`, which has no refiner)
        compvis_unet: whether its LoRA files name the UNet's layers by their compvis path, not by diffusers' (`compvis_names`)
        open_clip: prefix of the layer keys of the text encoder that is OpenCLIP's, whose attention is packed; or empty
    """

    name: str
    base_model_version: str
    architecture: str
    text_encoders: tuple[str, ...]
    native_size: int
    webui_version: str
    compvis_unet: bool = False
    open_clip: str = ""

    def modelspec(self, prediction_type: str) -> dict[str, str]:
        """What a checkpoint's metadata say of its architecture.

        Args:
            prediction_type: of the checkpoint; Stable Diffusion 2 has a name of its own for each
        """
        velocity, architecture = prediction_type == "v_prediction", self.architecture
        if self is SD2:
            architecture += "-768-v" if velocity else "-512"
        return {"modelspec.architecture": architecture, "modelspec.prediction_type": "v" if velocity else "epsilon"}

    def metadata(self, prediction_type: str) -> dict[str, str]:
        """By what the WebUI and others tell the family of a LoRA file: keys and values as kohya's trainers write them.

        Args:
            prediction_type: of the checkpoint that it was made on
        """
        spec = self.modelspec(prediction_type)
        suffix = "_768_v" if self is SD2 and spec["modelspec.prediction_type"] == "v" else ""
        return {
            "ss_base_model_version": self.base_model_version + suffix,
            "ss_v2": str(self is SD2),
            **spec,
            "modelspec.architecture": f"{spec['modelspec.architecture']}/lora",
        }

    def default_size(self, latents: int | None, prediction_type: str) -> int:
        """Height and width in pixels that a checkpoint draws at.

        Args:
            latents: what its configuration says; None where there is none. Stability's own for the 768-pixel velocity
                models still says 64, for 512 pixels
        """
        if self is SD2 and prediction_type == "v_prediction" and latents in (None, 64):
            return 768
        return self.native_size if latents is None else latents * PIXELS_PER_LATENT


#: of every family here
PIXELS_PER_LATENT = 8
#: other numbers of channels -> what kind of checkpoint has them
OTHER_CHANNELS = {8: "InstructPix2Pix", 7: "the ×4 upscaler", 5: "Stable Diffusion 2 with depth"}

SD1 = Family("SD1", "sd_v1", "stable-diffusion-v1", ("lora_te_",), 512, "SD1")
SD2 = Family("SD2", "sd_v2", "stable-diffusion-v2", ("lora_te_",), 512, "SD2", open_clip="lora_te_")
SDXL = Family(
    "SDXL",
    "sdxl_base_v1-0",
    "stable-diffusion-xl-v1-base",
    ("lora_te1_", "lora_te2_"),
    1024,
    "SDXL",
    compvis_unet=True,
    open_clip="lora_te2_",
)
REFINER = Family(
    "SDXL refiner",
    "sdxl_refiner_v1-0",
    "stable-diffusion-xl-v1-refiner",
    ("lora_te2_",),
    1024,
    "SDXL",
    compvis_unet=True,
    open_clip="lora_te2_",
)
#: by name
FAMILIES = {family.name: family for family in (SD1, SD2, SDXL, REFINER)}
