"""The LoRAs of a request, read and held against the loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .deltas import layer_delta
from .errors import LoraclrError
from .hosts.base import INPAINTING_CHANNELS, LATENT_CHANNELS, Host
from .layer_keys import bias_key, is_text_encoder
from .lora_family import family_by_tensors, family_of
from .lora_files import LoraFile, read_lora
from .low_rank import Factors
from .prompts import find_trigger
from .request import Concept


@dataclass(frozen=True)
class InputLora:
    """One input.

    Attributes:
        concept: as requested, trigger words filled in
        file: the file
        deltas: layer key -> factors, fp32, the concept's weight inside
        warnings: what a person should know about it
        loss: the largest share of a layer's delta that was lost where it had to be factored
    """

    concept: Concept
    file: LoraFile
    deltas: Mapping[str, Factors]
    warnings: tuple[str, ...] = field(default=())
    loss: float = 0.0

    @property
    def order(self) -> tuple:
        """A sort key that depends only on what the input is."""
        c = self.concept
        return self.file.hash, c.te_weight, c.unet_weight, c.dyn, c.trigger, c.kind, c.importance, c.prompts


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


def load_input(concept: Concept, host: Host, *, shapes_only: bool = False) -> InputLora:
    """Read one LoRA. Raises as `load_inputs`.

    Args:
        shapes_only: for a look before a merge: everything is read and held against the model as ever, but only the shapes of the
            deltas are kept (on the meta device), and those without exact low-rank factors have the highest rank they can have
    """
    file = read_lora(Path(concept.lora))
    found, foreign = _in_the_model(file, concept, host)
    deltas: dict[str, Factors] = {}
    losses: dict[str, float] = {}
    left_out = [*file.unknown, *foreign]
    for key, parameters in found.items():
        layer = host.layers()[key]
        delta = layer_delta(
            *(key, parameters, concept.lora, layer.weight),
            dyn=concept.dyn,
            factor=not shapes_only,
            device="cpu" if shapes_only else host.device,
        )
        factors = _on_all_channels(delta.factors, layer.weight)
        if factors.shape != layer.shape:
            raise LoraclrError(
                f"{concept.lora} does not fit {host.checkpoint} ({host.family.name}): {key} is {list(factors.shape)} "
                f"in the LoRA and {list(layer.shape)} in the model. {_remedy(file)}"
            )
        left_out += [f"{key}.{name}" for name in delta.unused]
        weight = concept.te_weight if is_text_encoder(key) else concept.unet_weight
        if weight == 0:
            continue
        kept_on = "meta" if shapes_only else host.device
        deltas[key] = factors.scaled(weight).to(kept_on)
        losses[key] = delta.loss
        if delta.bias is not None and bias_key(key) in host.layers():
            deltas[bias_key(key)] = delta.bias.scaled(weight).to(kept_on)
        elif delta.bias is not None:
            left_out.append(f"{bias_key(key)} (the layer has none that a LoRA can change)")
    trigger = concept.trigger or ("" if concept.prompts else find_trigger(file.path, file.metadata))
    warnings = _warnings(concept, left_out, losses)
    if concept.kind == "subject" and not trigger and not concept.prompts:
        trigger = concept.label
        warnings.append(f"{concept.label} names no trigger words: its file name is taken for them.")
    loss = max(losses.values(), default=0.0)
    return InputLora(replace(concept, trigger=trigger), file, deltas, tuple(warnings), loss)


def _in_the_model(file: LoraFile, concept: Concept, host: Host) -> tuple[dict[str, Mapping[str, Tensor]], list[str]]:
    """The file's layers by the host's keys, and the names of those that the model does not have.

    Raises:
        LoraclrError: it was made for another family, hardly a layer is in the model, or one is there under two names
    """
    layers, family = host.layers(), family_by_tensors(file.layers)
    misfit = f"{concept.lora} does not fit {host.checkpoint} ({host.family.name})"
    if family not in (None, host.family.name):
        raise LoraclrError(f"{misfit}. {_remedy(file)}")
    found: dict[str, Mapping[str, Tensor]] = {}
    for name, parameters in file.layers.items():
        key = host.aliases.get(name, name)
        if key in found:
            raise LoraclrError(f"{concept.lora} holds {key} twice, under two names ({name}): keep one of them.")
        found[key] = parameters
    foreign = [key for key in found if key not in layers]
    if 2 * len(foreign) > len(found):
        raise LoraclrError(
            f"{misfit}: {len(foreign)} of its {len(file.layers)} layers are not in the model ({foreign[0]}, …). "
            f"{_remedy(file)}"
        )
    return {key: parameters for key, parameters in found.items() if key in layers}, foreign


def _on_all_channels(factors: Factors, weight: Tensor) -> Factors:
    """A delta of the first convolution on an inpainting checkpoint: none of what it reads beside the latents.

    As the WebUI has it (`networks.network_apply_weights`).
    """
    if weight.dim() != 4 or weight.shape[1] != INPAINTING_CHANNELS:
        return factors
    kernel = weight[0, 0].numel()
    if factors.shape[1] != LATENT_CHANNELS * kernel:
        return factors
    missing = (INPAINTING_CHANNELS - LATENT_CHANNELS) * kernel
    return Factors(factors.up, torch.nn.functional.pad(factors.down, (0, missing)))


def _warnings(concept: Concept, left_out: list[str], losses: Mapping[str, float]) -> list[str]:
    """What was left out, and what factoring lost."""
    warnings = []
    if left_out:
        shown = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        warnings.append(f"{concept.label}: {len(left_out)} keys are not understood and left out ({shown}).")
    worst = max(losses, key=losses.get, default=None)
    if worst is not None and losses[worst] > 0:
        count = sum(loss > 0 for loss in losses.values())
        warnings.append(
            f"{concept.label}: {count} layers have no low rank of their own; their factors lose at most "
            f"{losses[worst]:.2%} of a layer ({worst})."
        )
    return warnings


def _remedy(file: LoraFile) -> str:
    family = family_of(file)
    if family:
        return f"It looks like a LoRA for {family}: load such a checkpoint, or leave it out."
    return "It was made for another model: load that one, or leave it out."
