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

from ..errors import LoraclrError
from .deltas import kind_of, loha, lokr, lora
from .layer_keys import TEXT_ENCODERS, is_text_encoder, module_path

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"


def stated_alphas(
    layers: Mapping[str, Mapping[str, Tensor]],
    names: Mapping[str, str],
    metadata: Mapping[str, str],
    path: Path,
    *,
    peft: bool,
) -> dict[str, Tensor]:
    """Layer key -> `alpha []` such that `alpha / r` is the scale, for layers of factors without one of their own.

    Args:
        layers: layer key -> parameter name -> tensor
        names: layer key -> one of the names that the file has for its tensors
        peft: whether the file's keys are those of PEFT, whose settings are beside it whatever the file is called

    Raises:
        LoraclrError: the settings are there and cannot be read
    """
    ranks = {key: _rank(parameters) for key, parameters in layers.items() if "alpha" not in parameters}
    ranks = {key: rank for key, rank in ranks.items() if rank}
    settings, where = _settings(metadata, path, peft=peft) if ranks else ({}, "")
    found = {}
    for key, rank in ranks.items():
        own = {name[len(_model(key)) :]: value for name, value in settings.items() if name.startswith(_model(key))}
        own = own or {name: value for name, value in settings.items() if "." not in name}
        try:
            alpha = _alpha(own, module_path(names[key]))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise _unreadable(where, error) from error
        if alpha is not None:
            found[key] = torch.tensor(alpha * math.sqrt(rank) if own.get("use_rslora") else alpha)
    return found


def assumed(layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """What to tell of a file of PEFT's whose layers still have no `alpha`; None where there is nothing to tell."""
    count = sum("alpha" not in parameters and bool(_rank(parameters)) for parameters in layers.values())
    if not count:
        return None
    return (
        f"nothing states the strength of {count} of its layers, so alpha = rank is assumed; PEFT keeps it in "
        f"{_CONFIG}: put that beside the file."
    )


def _rank(parameters: Mapping[str, Tensor]) -> int | None:
    """What `alpha` is divided by, where the layer is made of factors that tell."""
    kind = kind_of(parameters)
    try:
        return kind.rank(parameters) if kind in (lora, loha, lokr) else None
    except IndexError:  # shapes that fit no layer are refused where the delta is made
        return None


def _settings(metadata: Mapping[str, str], path: Path, *, peft: bool) -> tuple[dict[str, Any], str]:
    """The settings, and where they stand."""
    beside = path.with_name(_CONFIG)
    where = f"{_METADATA} of {path}" if _METADATA in metadata else str(beside)
    try:
        if _METADATA in metadata:
            settings = json.loads(metadata[_METADATA])
        elif (peft or path.name == "adapter_model.safetensors") and beside.is_file():
            settings = json.loads(beside.read_text("utf-8"))
        else:
            return {}, where
        if not isinstance(settings, dict):
            raise TypeError(f"it is {type(settings).__name__}, not an object")
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(where, error) from error
    return settings, where


def _unreadable(where: str, error: Exception) -> LoraclrError:
    return LoraclrError(f"{where} cannot be read ({error}), and the LoRA's strength stands there: mend it.")


def _model(key: str) -> str:
    if not is_text_encoder(key):
        return "unet."
    return "text_encoder_2." if key.startswith(TEXT_ENCODERS[2]) else "text_encoder."


def _alpha(settings: Mapping[str, Any], module: str | None) -> float | None:
    """`lora_alpha` (of LoHa and LoKr `alpha`), unless `alpha_pattern` has one for the module; None where nothing is said.

    Args:
        module: its dotted path in its model, None where the file does not tell
    """
    # a text encoder's path began with `text_model.` until transformers 5, whichever wrote the file
    paths = () if module is None else (module, module.removeprefix("text_model."))
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        # `peft.utils.other.get_pattern_key`: a regular expression for whole names at the end of the path
        if any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):
            return float(alpha)
    name = next((name for name in ("lora_alpha", "alpha") if name in settings), None)
    return None if name is None else float(settings[name])
