"""A Stable Diffusion XL checkpoint with random weights: real key names and topology, tiny widths.

Run as a script by the WebUI's interpreter, since the key names come from building the model with the WebUI's own `sgm`:

    python tests/tiny_sdxl.py WEBUI_DIR CLIP_FOLDER OUTPUT_FOLDER

It writes `tiny-sdxl.safetensors`, its `.yaml`, and `tiny-clip-g.json`, the second text encoder's sizes, which `open_clip` has to
be told of before the checkpoint is loaded (`open_clip.add_model_config`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAME, SECOND_ENCODER = "tiny-sdxl", "tiny-clip-g"
#: of the text encoders (the first is the demo checkpoint's), and of one number of the picture's size
FIRST_WIDTH, SECOND_WIDTH, SIZE_WIDTH = 128, 64, 32


def second_encoder() -> dict[str, Any]:
    """open_clip's configuration of the second text encoder; the image half is built and thrown away."""
    text = {"context_length": 77, "vocab_size": 49408, "width": SECOND_WIDTH, "heads": 4, "layers": 3}
    image = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    return {"embed_dim": SECOND_WIDTH, "vision_cfg": image, "text_cfg": text}


def config(clip: str) -> dict[str, Any]:
    """As `sd_xl_base.yaml`, smaller.

    Args:
        clip: folder with the first text encoder's tokenizer and sizes
    """
    sgm = "sgm.modules"
    size = {"target": f"{sgm}.encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": SIZE_WIDTH}}
    encoders = [
        {
            "input_key": "txt",
            "target": f"{sgm}.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": clip, "layer": "hidden", "layer_idx": 3},
        },
        {
            "input_key": "txt",
            "target": f"{sgm}.encoders.modules.FrozenOpenCLIPEmbedder2",
            "params": {
                "arch": SECOND_ENCODER,
                "version": None,
                "freeze": True,
                "layer": "penultimate",
                "always_return_pooled": True,
                "legacy": False,
            },
        },
        *(
            {"input_key": key, **size}
            for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
        ),
    ]
    unet = {
        "adm_in_channels": SECOND_WIDTH + 6 * SIZE_WIDTH,
        "num_classes": "sequential",
        "use_checkpoint": False,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "attention_resolutions": [4, 2],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4],
        "num_head_channels": 16,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": [1, 1, 2],
        "legacy": False,
        "context_dim": FIRST_WIDTH + SECOND_WIDTH,
        "spatial_transformer_attn_type": "softmax",
    }
    vae = {
        "attn_type": "vanilla",
        "double_z": True,
        "z_channels": 4,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    denoiser = {
        "num_idx": 1000,
        "weighting_config": {"target": f"{sgm}.diffusionmodules.denoiser_weighting.EpsWeighting"},
        "scaling_config": {"target": f"{sgm}.diffusionmodules.denoiser_scaling.EpsScaling"},
        "discretization_config": {"target": f"{sgm}.diffusionmodules.discretizer.LegacyDDPMDiscretization"},
    }
    parts = {
        "scale_factor": 0.13025,
        "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{sgm}.diffusionmodules.denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{sgm}.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "conditioner_config": {
            "target": f"{sgm}.GeneralConditioner",
            "params": {"emb_models": [{"is_trainable": False, **encoder} for encoder in encoders]},
        },
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": {
                "embed_dim": 4,
                "monitor": "val/rec_loss",
                "ddconfig": vae,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": parts}}


def randomize(tensors: dict[str, Any]) -> dict[str, Any]:
    """Random weights of which none is zero: sgm starts its last layers at zero, and gradients with them.

    The text encoders' positions get a mean: the WebUI's emphasis divides by the mean of what they put out.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    result = {}
    for key, tensor in tensors.items():
        random = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point() or key.startswith("denoiser.") or tensor.dim() == 0:
            result[key] = tensor
        elif "position" in key:
            result[key] = 0.5 + 0.1 * random
        elif tensor.dim() >= 2:
            result[key] = random / max(1, tensor[0].numel()) ** 0.5
        else:
            result[key] = 0.1 * random + (1.0 if key.endswith("weight") else 0.0)
    return {key: tensor.contiguous() for key, tensor in result.items()}


def write(webui: Path, clip: Path, folder: Path) -> None:
    """Write the three files."""
    sys.path.insert(0, str(webui / "repositories" / "generative-models"))
    import open_clip
    import yaml
    from safetensors.torch import save_file
    from sgm.util import instantiate_from_config
    from transformers import CLIPTextConfig, CLIPTextModel

    folder.mkdir(parents=True, exist_ok=True)
    sizes = folder / f"{SECOND_ENCODER}.json"
    sizes.write_text(json.dumps(second_encoder()), "utf-8")
    open_clip.add_model_config(sizes)
    # there are no weights to fetch: only the sizes are wanted
    CLIPTextModel.from_pretrained = lambda folder, **_: CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    settings = config(str(clip))
    model = instantiate_from_config(settings["model"])
    save_file(randomize(model.state_dict()), folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(settings), "utf-8")


if __name__ == "__main__":
    write(*(Path(argument) for argument in sys.argv[1:]))
