"""The base models behind LoRAs: what their metadata say of them, and what does not go together.

A LoRA runs on any checkpoint of its family, so this is only ever a warning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..model import Host
from .inputs import InputLora

#: what WebUI and trainers hashed of a checkpoint before they hashed all of it (`modules/sd_models.py`, `model_hash`)
_HASHED_FROM, _HASHED_BYTES, _DIGITS = 0x100000, 0x10000, 8
_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
_SAID = {"v_prediction": "v-prediction", "epsilon": "noise prediction"}


@dataclass(frozen=True)
class BaseModel:
    """The model that a LoRA was trained on.

    Attributes:
        name: its file
        hashes: by kind, where the metadata have them
        prediction: "epsilon", "v_prediction", or empty where nothing tells
    """

    name: str
    hashes: Mapping[str, str]
    prediction: str

    def differs(self, other: BaseModel) -> bool:
        """Whether it is known to be another model: by the hashes that both have, else by name."""
        common = self.hashes.keys() & other.hashes.keys()
        if common:
            return all(self.hashes[kind] != other.hashes[kind] for kind in common)
        return bool(self.name and other.name) and self.name != other.name

    def __str__(self) -> str:
        return self.name or "a model with hash " + next(iter(self.hashes.values()), "unknown")


def base_of(metadata: Mapping[str, str]) -> BaseModel:
    """What kohya's `ss_…` and Stability's `modelspec.…` tell of the model a LoRA was trained on."""
    keys = {"new": "ss_new_sd_model_hash", "old": "ss_sd_model_hash"}
    hashes = {kind: metadata[key].lower() for kind, key in keys.items() if _known(metadata.get(key))}
    name = metadata.get("ss_sd_model_name", "")
    prediction = _PREDICTIONS.get(metadata.get("modelspec.prediction_type", "").lower(), "")
    if metadata.get("ss_v_parameterization") == "True" or metadata.get("ss_base_model_version", "").endswith("_v"):
        prediction = "v_prediction"
    return BaseModel(PurePath(name.replace("\\", "/")).name if _known(name) else "", hashes, prediction)


def _known(value: str | None) -> bool:
    return value not in (None, "", "None")


def checkpoint_model(path: Path, prediction: str) -> BaseModel:
    """The loaded checkpoint in the same terms; a folder of diffusers' is known by nothing."""
    if not path.is_file():
        return BaseModel("", {}, prediction)
    with path.open("rb") as stream:
        stream.seek(_HASHED_FROM)
        digest = hashlib.sha256(stream.read(_HASHED_BYTES)).hexdigest()
    return BaseModel(path.name, {"old": digest[:_DIGITS]}, prediction)


def base_model_warnings(inputs: Sequence[InputLora], host: Host) -> list[str]:
    """What a person should know of the LoRAs' base models: they differ, or are not the checkpoint that is loaded."""
    bases = {given.concept.label: base_of(given.file.metadata) for given in inputs}
    loaded = checkpoint_model(host.checkpoint_path, host.prediction_type)
    warnings = []
    listed = list(bases.values())
    if any(one.differs(other) for i, one in enumerate(listed) for other in listed[:i]):
        said = ", ".join(f"{label} on {base}" for label, base in bases.items() if base.name or base.hashes)
        warnings.append(f"The LoRAs were trained on different base models ({said}): they may not go well together.")
    others = [label for label, base in bases.items() if base.differs(loaded)]
    if others:
        warnings.append(
            f"{', '.join(others)}: trained on another base model than {loaded} "
            f"({', '.join(sorted({str(bases[label]) for label in others}))}): may look different on it."
        )
    for label, base in bases.items():
        if base.prediction and base.prediction != host.prediction_type:
            warnings.append(
                f"{label} was trained on a model with {_SAID[base.prediction]}, and {host.checkpoint} is one with "
                f"{_SAID[host.prediction_type]}: it may do little or harm there."
            )
    return warnings
