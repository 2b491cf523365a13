"""The LoRAs of a request, read and held against the loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..files import (
    LoraFile,
    bias_key,
    embedding_name,
    family_by_tensors,
    family_of,
    find_trigger,
    incomplete_attention,
    is_text_encoder,
    layer_delta,
    read_lora,
)
from ..model import FAMILIES, INPAINTING_CHANNELS, Factors, Host, Layer
from ..progress import Progress, Stage
from ..request import Concept, MergeRequest


@dataclass(frozen=True)
class InputLora:
    """One input.

    Attributes:
        concept: as requested, trigger words filled in
        file: the file
        deltas: layer key -> factors, fp32, the concept's weight inside
        warnings: what a person should know about it
        left_out: every key that is not understood, and every layer that the model does not have
        loss: the largest share of a layer's delta that was lost where it had to be factored
    """

    concept: Concept
    file: LoraFile
    deltas: Mapping[str, Factors]
    warnings: tuple[str, ...] = field(default=())
    loss: float = 0.0
    left_out: tuple[str, ...] = ()

    @property
    def order(self) -> tuple:
        """A sort key that depends only on what the input is."""
        c = self.concept
        return self.file.hash, c.te_weight, c.unet_weight, c.dyn, c.trigger, c.kind, c.importance, c.prompts, c.alone


def load_inputs(concepts: Sequence[Concept], host: Host, progress: Progress | None = None) -> list[InputLora]:
    """Read every LoRA and check that it fits the loaded model.

    Raises:
        Interrupted: the user asked to stop
        LoraclrError: a file cannot be read, or fits another kind of model
    """
    progress = progress or Progress()
    progress.start(Stage.READING, len(concepts))
    inputs = []
    for concept in concepts:
        inputs.append(load_input(concept, host, progress))
        progress.advance(1, concept.label)
    return inputs


def bundled_embeddings(inputs: Sequence[InputLora]) -> dict[str, Tensor]:
    """Embeddings that the inputs bundle, by their keys; of one that several have in different precisions, the finer.

    Raises:
        LoraclrError: two inputs bundle different ones of one name
    """
    found: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    for given in inputs:
        for key, tensor in given.file.embeddings.items():
            other = found.get(key)
            if other is not None and not _same(tensor, other):
                raise LoraclrError(
                    f"{given.concept.label} bundles an embedding that {owner[key]} bundles with other content ({key}): "
                    "leave one of them out."
                )
            if other is None or tensor.element_size() > other.element_size():
                found[key], owner[key] = tensor, given.concept.label
    return found


def lost_embeddings(request: MergeRequest, inputs: Sequence[InputLora]) -> list[str]:
    """A warning where the inputs bundle embeddings and what is saved cannot."""
    names = sorted({embedding_name(key) for given in inputs for key in given.file.embeddings})
    if not names or request.save_as != "checkpoint":
        return []
    return [
        f"A checkpoint cannot hold the bundled embeddings ({', '.join(names)}): put them into the folder embeddings by "
        "themselves, or save the merge as a LoRA."
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in the coarser of their precisions."""
    coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(coarse), other.to(coarse))


def load_input(
    concept: Concept, host: Host, progress: Progress | None = None, *, shapes_only: bool = False
) -> InputLora:
    """Read one LoRA. Raises as `load_inputs`.

    Args:
        shapes_only: for a look before a merge: everything is read and held against the model as ever, but only the shapes of the
            deltas are kept (on the meta device), and those without exact low-rank factors have the highest rank they can have
    """
    file = read_lora(Path(concept.lora))
    found, foreign = _in_the_model(file, concept, host)
    deltas: dict[str, Factors] = {}
    losses: dict[str, float] = {}
    unknown = list(file.unknown)
    for key, parameters in found.items():
        if progress:  # those without factors of their own take their time
            progress.advance(0)
        layer = host.layers()[key]
        delta = layer_delta(
            *(key, parameters, concept.lora, layer.weight),
            dyn=concept.dyn,
            factor=not shapes_only,
            device="cpu" if shapes_only else host.device,
        )
        if _of_all_channels(delta.factors, layer):
            foreign.append(f"{key} (the WebUI reads no LoRA of all that an inpainting checkpoint's first layer reads)")
            continue
        if delta.factors.shape != layer.shape:
            raise LoraclrError(
                f"{concept.lora} does not fit {host.checkpoint} ({host.family.name}): {key} is {list(delta.factors.shape)} "
                f"in the LoRA and {list(layer.shape)} in the model. {_remedy(file)}"
            )
        unknown += [f"{key}.{name}" for name in delta.unused]
        weight = concept.te_weight if is_text_encoder(key) else concept.unet_weight
        if weight == 0:
            continue
        kept_on = "meta" if shapes_only else host.device
        deltas[key] = delta.factors.scaled(weight).to(kept_on)
        losses[key] = delta.loss
        if delta.bias is not None and bias_key(key) in host.layers():
            deltas[bias_key(key)] = delta.bias.scaled(weight).to(kept_on)
        elif delta.bias is not None:
            foreign.append(f"{bias_key(key)} (the layer has none that a LoRA can change)")
    concept, warnings = _called(concept, file)
    warnings = [
        *(f"{concept.label}: {warning}" for warning in file.warnings),
        *_warnings(concept.label, unknown, foreign, losses),
        *_unlike_a_prompt(concept, deltas, host),
        *warnings,
    ]
    loss = max(losses.values(), default=0.0)
    return InputLora(concept, file, deltas, tuple(warnings), loss, (*unknown, *foreign))


def _called(concept: Concept, file: LoraFile) -> tuple[Concept, list[str]]:
    """The concept with its trigger words, and a warning where only its name was left to take them from."""
    trigger = concept.trigger or ""
    if not trigger and (concept.kind == "subject" or concept.trigger is None):
        trigger = "" if concept.prompts else find_trigger(file.path, file.metadata)
    if concept.kind == "subject" and not trigger and not concept.prompts:
        warning = f"{concept.label} names no trigger words: its file name is taken for them."
        return replace(concept, trigger=concept.label), [warning]
    return replace(concept, trigger=trigger), []


def _of_all_channels(factors: Factors, layer: Layer) -> bool:
    """Whether it is a delta of all that an inpainting UNet's first convolution reads; only what reads latents is the layer."""
    d_out, d_in = layer.shape
    return bool(layer.channels) and factors.shape == (d_out, d_in // layer.channels * INPAINTING_CHANNELS)


def _unlike_a_prompt(concept: Concept, deltas: Mapping[str, Factors], host: Host) -> list[str]:
    """Where a merge and a prompt in the WebUI read the file differently."""
    incomplete = incomplete_attention(deltas, host.family.open_clip)
    if not incomplete:
        return []
    return [
        f"{concept.label}: in a prompt the WebUI leaves out {len(incomplete)} attention layers of OpenCLIP's text encoder, "
        f"as the file does not have all of q, k, v and out there ({incomplete[0]}, …). The merge applies them."
    ]


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


def _warnings(label: str, unknown: list[str], foreign: list[str], losses: Mapping[str, float]) -> list[str]:
    """What was left out, and what factoring lost."""
    warnings = []
    if unknown:
        warnings.append(f"{label}: {len(unknown)} keys are not understood and left out ({_some(unknown)}).")
    if foreign:
        warnings.append(f"{label}: {len(foreign)} layers are not in the model and left out ({_some(foreign)}).")
    worst = max(losses, key=losses.get, default=None)
    if worst is not None and losses[worst] > 0:
        count = sum(loss > 0 for loss in losses.values())
        warnings.append(
            f"{label}: {count} layers have no low rank of their own; their factors lose at most "
            f"{losses[worst]:.2%} of a layer ({worst})."
        )
    return warnings


def _some(names: list[str]) -> str:
    """The first of them; all are in the report (`--report`) and in `inspect`."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _remedy(file: LoraFile) -> str:
    family = family_of(file)
    if family and family not in FAMILIES:
        return f"It looks like a LoRA for {family}, which cannot be merged: leave it out."
    if family:
        return f"It looks like a LoRA for {family}: load such a checkpoint, or leave it out."
    return "It was made for another model: load that one, or leave it out."
