"""`alpha` of files that keep it outside their tensors: diffusers' and PEFT's.

diffusers writes PEFT's settings of each model into the file's metadata, PEFT itself into `adapter_config.json` beside it. Without
either, `alpha` is the rank. rsLoRA (Kalajdzievski, arXiv 2312.03732) scales by `alpha / sqrt(r)`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import LoraclrError
from .layer_keys import TEXT_ENCODERS, is_text_encoder

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"


def stated_alphas(
    layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """Layer key -> `alpha []` such that `alpha / r` is the scale, for LoRA layers without one of their own.

    Raises:
        LoraclrError: the settings are there and cannot be read
    """
    settings = _settings(metadata, path)
    found = {}
    for key, parameters in layers.items():
        down = parameters.get("lora_A.weight", parameters.get("lora_down.weight"))
        if "alpha" in parameters or down is None or down.dim() == 0:
            continue
        own = {name[len(_model(key)) :]: value for name, value in settings.items() if name.startswith(_model(key))}
        own = own or {name: value for name, value in settings.items() if "." not in name}
        if "lora_alpha" in own:
            alpha, rank = _patterned(own, key), len(down)
            found[key] = torch.tensor(alpha * math.sqrt(rank) if own.get("use_rslora") else alpha)
    return found


def _settings(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    beside = path.with_name(_CONFIG)
    where = f"{_METADATA} of {path}" if _METADATA in metadata else str(beside)
    try:
        if _METADATA in metadata:
            settings = json.loads(metadata[_METADATA])
        elif path.name == "adapter_model.safetensors" and beside.is_file():
            settings = json.loads(beside.read_text("utf-8"))
        else:
            return {}
        if not isinstance(settings, dict):
            raise TypeError(f"it is {type(settings).__name__}, not an object")
    except (OSError, ValueError, TypeError) as error:
        raise LoraclrError(
            f"{where} cannot be read ({error}), and the LoRA's strength stands there: mend it."
        ) from error
    return settings


def _model(key: str) -> str:
    if not is_text_encoder(key):
        return "unet."
    return "text_encoder_2." if key.startswith(TEXT_ENCODERS[2]) else "text_encoder."


def _patterned(settings: Mapping[str, Any], key: str) -> float:
    """`lora_alpha`, unless `alpha_pattern` has one for the end of the layer's path."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|_){re.escape(pattern.replace('.', '_'))}$", key):
            return float(alpha)
    return float(settings["lora_alpha"])
