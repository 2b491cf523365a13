"""The tiny checkpoints where a WebUI finds them, with the configurations that it needs to build models of their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Tiny

#: what open_clip is told the second text encoder is called
OPEN_CLIP = "tiny-open-clip"
_SCHEDULE = {
    "linear_start": 0.00085,
    "linear_end": 0.0120,
    "timesteps": 1000,
    "num_timesteps_cond": 1,
    "log_every_t": 200,
}
_SGM = "sgm.modules"


def put(kind: Tiny, folder: Path, clip: Path) -> None:
    """Write a checkpoint and its configuration into the data folder of a WebUI.

    Args:
        folder: the data folder; sizes that open_clip has to be told of go to `open_clip`
        clip: folder with CLIP's tokenizer and sizes
    """
    path = kind.write(folder / "models" / "Stable-diffusion")
    config = _sgm(kind, str(clip)) if kind.family.startswith("SDXL") else _ldm(kind, str(clip))
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": config}), "utf-8")
    sizes = folder / "open_clip" / f"{OPEN_CLIP}.json"
    sizes.parent.mkdir(exist_ok=True)
    sizes.write_text(json.dumps(_open_clip()), "utf-8")


def _open_clip() -> dict[str, Any]:
    """open_clip's configuration of its text encoder; the image half is built and thrown away."""
    width = tiny.OPEN_CLIP_WIDTH
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": 1, "layers": tiny.OPEN_CLIP_LAYERS}
    image = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    return {"embed_dim": width, "vision_cfg": image, "text_cfg": text}


def _ldm(kind: Tiny, clip: str) -> dict[str, Any]:
    """As `v1-inference.yaml`, `v1-inpainting-inference.yaml`, `v2-inference-v.yaml` and `v2-inpainting-inference.yaml`."""
    inpainting = kind.sizes.inputs == 9
    encoder, params = "FrozenCLIPEmbedder", {"version": clip}
    if kind.open_clip:
        encoder = "FrozenOpenCLIPEmbedder"
        params = {"arch": OPEN_CLIP, "version": None, "freeze": True, "layer": "penultimate"}
    return {
        "target": f"ldm.models.diffusion.ddpm.Latent{'Inpaint' if inpainting else ''}Diffusion",
        "params": {
            **_SCHEDULE,
            "parameterization": "v" if kind.velocity else "eps",
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 16,
            "channels": 4,
            "cond_stage_trainable": False,
            "conditioning_key": "hybrid" if inpainting else "crossattn",
            "scale_factor": 0.18215,
            "use_ema": False,
            **({"finetune_keys": None} if inpainting else {}),
            "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": _unet(kind)},
            "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": _vae()},
            "cond_stage_config": {"target": f"ldm.modules.encoders.modules.{encoder}", "params": params},
        },
    }


def _unet(kind: Tiny) -> dict[str, Any]:
    sizes = kind.sizes
    heads = {"num_head_channels": 64, "use_linear_in_transformer": True} if sizes.linear else {"num_heads": 8}
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "in_channels": sizes.inputs,
        "out_channels": 4,
        "model_channels": sizes.channels[0],
        "attention_resolutions": [2**level for level, depth in enumerate(sizes.depths) if depth],
        "num_res_blocks": 2,
        "channel_mult": [width // sizes.channels[0] for width in sizes.channels],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": sizes.context,
        "legacy": False,
        **heads,
    }


def _vae() -> dict[str, Any]:
    sizes = {
        "z_channels": 4,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": tiny.VAE_WIDTH,
        "ch_mult": [1] * 4,
    }
    blocks = {"double_z": True, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    loss = {"target": "torch.nn.Identity"}
    return {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": {**sizes, **blocks}, "lossconfig": loss}


def _sgm(kind: Tiny, clip: str) -> dict[str, Any]:
    """As `sd_xl_base.yaml`, `sd_xl_inpaint.yaml` and `sd_xl_refiner.yaml`."""
    unet = {name: value for name, value in _unet(kind).items() if name != "image_size"}
    unet |= {
        "adm_in_channels": kind.sizes.vector,
        "num_classes": "sequential",
        "transformer_depth": [max(1, depth) for depth in kind.sizes.depths],
        "spatial_transformer_attn_type": "softmax",
    }
    scaling = "VScaling" if "v_pred" in kind.markers or kind.velocity else "EpsScaling"
    denoiser = {
        "num_idx": 1000,
        "weighting_config": {"target": f"{_SGM}.diffusionmodules.denoiser_weighting.EpsWeighting"},
        "scaling_config": {"target": f"{_SGM}.diffusionmodules.denoiser_scaling.{scaling}"},
        "discretization_config": {"target": f"{_SGM}.diffusionmodules.discretizer.LegacyDDPMDiscretization"},
    }
    first_stage = {"target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper", "params": _vae()}
    return {
        "target": "sgm.models.diffusion.DiffusionEngine",
        "params": {
            "scale_factor": 0.13025,
            "disable_first_stage_autocast": True,
            "denoiser_config": {"target": f"{_SGM}.diffusionmodules.denoiser.DiscreteDenoiser", "params": denoiser},
            "network_config": {"target": f"{_SGM}.diffusionmodules.openaimodel.UNetModel", "params": unet},
            "conditioner_config": {
                "target": f"{_SGM}.GeneralConditioner",
                "params": {"emb_models": list(_embedders(kind, clip))},
            },
            "first_stage_config": first_stage,
        },
    }


def _embedders(kind: Tiny, clip: str):
    """What prompts and sizes are encoded by, in the order of their tensors' numbers."""
    if kind.clip:
        params = {"version": clip, "layer": "hidden", "layer_idx": tiny.CLIP_LAYERS - 1}
        yield _embedder("txt", "FrozenCLIPEmbedder", params)
    params = {"arch": OPEN_CLIP, "version": None, "freeze": True, "layer": "penultimate"}
    yield _embedder("txt", "FrozenOpenCLIPEmbedder2", {**params, "always_return_pooled": True, "legacy": False})
    last = "target_size_as_tuple" if kind.clip else "aesthetic_score"
    for key in ("original_size_as_tuple", "crop_coords_top_left", last):
        yield _embedder(key, "ConcatTimestepEmbedderND", {"outdim": tiny.SIZE_WIDTH})


def _embedder(key: str, name: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"is_trainable": False, "input_key": key, "target": f"{_SGM}.encoders.modules.{name}", "params": params}
