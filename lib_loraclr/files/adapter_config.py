"""`alpha` of files that keep it outside their tensors: diffusers' and PEFT's.

diffusers writes PEFT's settings of each model into the file's metadata, PEFT itself into `adapter_config.json` beside it. Without
either, `alpha` is the rank. rsLoRA (Kalajdzievski, arXiv 2312.03732) scales by `alpha / sqrt(r)`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraclrError
from .deltas import kind_of, loha, lokr, lora
from .layer_keys import TEXT_ENCODERS, is_text_encoder, module_path
from .name_patterns import NamePatterns

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
_NOTHING = object()


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
    found, models = {}, {}
    try:
        for key, rank in ranks.items():
            model = _model(key)
            if model not in models:
                models[model] = _OfModel(settings, model)
            alpha = models[model].alpha(module_path(names[key]))
            if alpha is not None:
                found[key] = torch.tensor(alpha * math.sqrt(rank) if models[model].use_rslora else alpha)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _unreadable(where, error) from error
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
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(where, error) from error
    return settings, where


def _unreadable(where: str, error: Exception) -> LoraclrError:
    return LoraclrError(f"{where} cannot be read ({error}), and the LoRA's strength stands there: mend it.")


def _model(key: str) -> str:
    if not is_text_encoder(key):
        return "unet."
    return "text_encoder_2." if key.startswith(TEXT_ENCODERS[2]) else "text_encoder."


class _OfModel:
    """The settings of one model: of a file's several those with its name before them, of PEFT's own file all."""

    def __init__(self, settings: Mapping[str, Any], model: str) -> None:
        own = {name[len(model) :]: value for name, value in settings.items() if name.startswith(model)}
        own = own or {name: value for name, value in settings.items() if "." not in name}
        self.use_rslora = bool(own.get("use_rslora"))
        self._patterns = NamePatterns(own.get("alpha_pattern") or {})
        self._alpha = next((own[name] for name in ("lora_alpha", "alpha") if name in own), _NOTHING)

    def alpha(self, module: str | None) -> float | None:
        """`lora_alpha` (of LoHa and LoKr `alpha`), unless `alpha_pattern` has one for the module; None where nothing is said.

        Args:
            module: its dotted path in its model, None where the file does not tell

        Raises:
            TypeError, ValueError, OverflowError: it is no finite number
        """
        # a text encoder's path began with `text_model.` until transformers 5, whichever wrote the file
        paths = () if module is None else (module, module.removeprefix("text_model."))
        found = (self._patterns.find(path) for path in dict.fromkeys(paths))
        said = next((alpha for alpha in found if alpha is not None), self._alpha)
        if said is _NOTHING:
            return None
        if not math.isfinite(float(said)):
            raise ValueError(f"alpha is {said}")
        return float(said)
