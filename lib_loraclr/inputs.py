"""The LoRAs of a request, read and held against the loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .deltas import layer_factors
from .errors import LoraclrError
from .hosts.base import Host
from .layer_keys import is_text_encoder
from .lora_files import LoraFile, read_lora
from .low_rank import Factors
from .prompts import find_trigger
from .request import Concept

#: width of what cross-attention reads -> family
_FAMILY_BY_CONTEXT = {768: "SD1", 1024: "SD2", 2048: "SDXL"}


@dataclass(frozen=True)
class InputLora:
    """One input.

    Attributes:
        concept: as requested, trigger words filled in
        file: the file
        deltas: layer key -> factors, fp32, the concept's weight inside
        warnings: what a person should know about it
    """

    concept: Concept
    file: LoraFile
    deltas: Mapping[str, Factors]
    warnings: tuple[str, ...] = field(default=())

    @property
    def order(self) -> tuple:
        """A sort key that depends only on what the input is."""
        c = self.concept
        return self.file.hash, c.te_weight, c.unet_weight, c.trigger, c.kind, c.importance, c.prompts


def load_inputs(concepts: Sequence[Concept], host: Host) -> list[InputLora]:
    """Read every LoRA and check that it fits the loaded model.

    Raises:
        LoraclrError: a file cannot be read, fits another kind of model, or is there twice under two names
    """
    inputs = [load_input(concept, host) for concept in concepts]
    seen: dict[str, str] = {}
    for given in inputs:
        other = seen.setdefault(given.file.hash, given.concept.lora)
        if other != given.concept.lora:
            raise LoraclrError(
                f"{given.concept.lora} is the same LoRA as {other}: name it once, and raise its weight instead."
            )
    if not any(given.deltas for given in inputs):
        raise LoraclrError("All weights are 0, so nothing would be merged: give at least one LoRA another weight.")
    return inputs


def load_input(concept: Concept, host: Host) -> InputLora:
    """Read one LoRA. Raises as `load_inputs`."""
    file = read_lora(Path(concept.lora))
    layers = host.layers()
    found = {host.aliases.get(key, key): parameters for key, parameters in file.layers.items()}
    foreign = [key for key in found if key not in layers]
    if foreign:
        raise LoraclrError(
            f"{concept.lora} does not fit {host.checkpoint} ({host.family.name}): {len(foreign)} of its {len(file.layers)} "
            f"layers are not in the model ({foreign[0]}, …). {_remedy(file)}"
        )
    deltas = {}
    for key, parameters in found.items():
        factors = layer_factors(key, parameters, concept.lora)
        if factors.shape != layers[key].shape:
            raise LoraclrError(
                f"{concept.lora} does not fit {host.checkpoint} ({host.family.name}): {key} is {list(factors.shape)} in the "
                f"LoRA and {list(layers[key].shape)} in the model. {_remedy(file)}"
            )
        weight = concept.te_weight if is_text_encoder(key) else concept.unet_weight
        if weight != 0:
            deltas[key] = factors.scaled(weight).to(host.device)
    trigger = concept.trigger or ("" if concept.prompts else find_trigger(file.path, file.metadata))
    warnings = []
    if file.unknown:
        shown = ", ".join(file.unknown[:3])
        warnings.append(f"{concept.label}: {len(file.unknown)} keys are not understood and left out ({shown}, …).")
    if concept.kind == "subject" and not trigger and not concept.prompts:
        trigger = concept.label
        warnings.append(f"{concept.label} names no trigger words: its file name is taken for them.")
    return InputLora(replace(concept, trigger=trigger), file, deltas, tuple(warnings))


def family_of(file: LoraFile) -> str | None:
    """The family a LoRA was made for: by its layers' names and its cross-attention's width, else by its metadata."""
    if any(key.startswith(("lora_te1_", "lora_te2_")) for key in file.layers):
        return "SDXL"
    for key, parameters in file.layers.items():
        if key.endswith("attn2_to_k") and "lora_down.weight" in parameters:
            family = _FAMILY_BY_CONTEXT.get(parameters["lora_down.weight"].shape[1])
            if family:
                return family
    return {"sd_v1": "SD1", "sd_v2": "SD2"}.get(file.metadata.get("ss_base_model_version", ""))


def _remedy(file: LoraFile) -> str:
    family = family_of(file)
    if family:
        return f"It looks like a LoRA for {family}: load such a checkpoint, or leave it out."
    return "It was made for another model: load that one, or leave it out."
