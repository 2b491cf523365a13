"""The noise schedule of a checkpoint, and whether its network predicts the noise or the velocity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

#: what the WebUI puts for a signal of zero (`rescale_zero_terminal_snr_abar`): a network that predicts noise divides by it
SMALLEST_ALPHA = 4.8973451890853435e-08
#: what all of them were trained with
_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LDM_NAMES = {"num_train_timesteps": "timesteps", "beta_start": "linear_start", "beta_end": "linear_end"}


def make_schedule(params: Mapping[str, Any], *, velocity: bool, zero_terminal_snr: bool) -> DDIMScheduler:
    """The schedule of a single-file checkpoint.

    Args:
        params: `model.params` of its configuration; may be empty
        velocity: whether the network predicts velocities
        zero_terminal_snr: whether nothing of the picture is left at the last step (Lin et al., arXiv 2305.08891, algorithm 1)
    """
    named = {name: params.get(ldm, _BETAS[name]) for name, ldm in _LDM_NAMES.items()}
    return DDIMScheduler(
        **{**_BETAS, **named},
        prediction_type="v_prediction" if velocity else "epsilon",
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def alphas_of(schedule: DDIMScheduler) -> Tensor:
    """`alphas_cumprod`, `[1000]`, none of it zero."""
    return schedule.alphas_cumprod.clamp(min=SMALLEST_ALPHA)


def declared_velocity(
    params: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> bool | None:
    """Whether a checkpoint says that its network predicts velocities; None where it says nothing.

    Its configuration decides, then the tensor named `v_pred` that such checkpoints of XL carry, then its metadata.
    """
    if "parameterization" in params:
        return params["parameterization"] == "v"
    scaling = params.get("denoiser_config", {}).get("params", {}).get("scaling_config", {}).get("target")
    if scaling:
        return scaling.rpartition(".")[2] == "VScaling"
    if "v_pred" in tensors:
        return True
    kind = metadata.get("modelspec.prediction_type", "").lower()
    return kind.startswith("v") if kind else None


@torch.no_grad()
def predicts_velocity(unet: nn.Module) -> bool:
    """Whether a UNet of Stable Diffusion 2 predicts velocities, told by what it says of pure noise.

    At the last step the input is the noise, so a network that predicts noise gives it back. One that predicts velocities
    gives what it takes the picture for, negated. The WebUI tells them apart in the same way and with the same numbers
    (`sd_models_config.is_using_v_parameterization_for_sd2`).
    """
    half = torch.full((1, unet.config.in_channels, 8, 8), 0.5, dtype=unet.dtype, device=unet.device)
    context = half.new_full((1, 2, unet.config.cross_attention_dim), 0.5)
    output = unet(half, torch.tensor([999], device=unet.device), context).sample
    return float((output - half).float().mean()) < -1
