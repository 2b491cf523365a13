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
    Trigger,
    bias_key,
    embedding_name,
    family_of,
    few_steps,
    few_steps_warning,
    find_trigger,
    incomplete_attention,
    is_text_encoder,
    layer_delta,
    read_lora,
)
from ..model import FAMILIES, INPAINTING_CHANNELS, REFINER, SDXL, Factors, Host, Layer, evened
from ..progress import Progress, Stage
from ..request import Concept, MergeRequest, has_weights
from .reading import unweighted


@dataclass(frozen=True)
class InputLora:
    """One input.

    Attributes:
        concept: as requested, trigger words filled in
        file: the file
        deltas: layer key -> factors, fp32, the concept's weight inside
        warnings: what a person should know about it
        left_out: every key that is not understood, and every layer that the model does not have, under the file's own names
        trigger: where the trigger words were found; None where the request has them, or none were looked for
        loss: the largest share of a layer's delta that was lost where it had to be factored
    """

    concept: Concept
    file: LoraFile
    deltas: Mapping[str, Factors]
    warnings: tuple[str, ...] = field(default=())
    loss: float = 0.0
    left_out: tuple[str, ...] = ()
    trigger: Trigger | None = None

    @property
    def trigger_is_guess(self) -> bool:
        """Whether the trigger words may well be others: neither the request nor the file names any."""
        return self.trigger is not None and self.trigger.is_guess

    @property
    def order(self) -> tuple:
        """A sort key that depends only on what the input is."""
        c = self.concept
        asked = (c.trigger, c.kind, c.importance, c.prompts, c.alone, c.outfits, c.applied_to)
        return self.file.hash, c.te_weight, c.unet_weight, c.dyn, *asked


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
    read = _Read(concept, file, host, [file.own_key(*own) for own in foreign], shapes_only=shapes_only)
    for key, (name, parameters) in found.items():
        if progress:  # those without factors of their own take their time
            progress.advance(0)
        read.add(key, name, parameters)
    concept, trigger = _called(concept, file)
    weighted = [text for text in (concept.trigger, *concept.prompts) if has_weights(text)]
    kind = few_steps(file.name, file.metadata)
    warnings = [
        *(f"{concept.label}: {warning}" for warning in file.warnings),
        *([few_steps_warning(concept.label, kind)] if kind else []),
        *read.warnings(),
        *([trigger.warning(concept.label)] if trigger and trigger.is_guess else []),
        *([f"{concept.label}: {unweighted(weighted[0])}"] if weighted and not host.weighs_words else []),
    ]
    loss = max(read.losses.values(), default=0.0)
    return InputLora(concept, file, read.deltas, tuple(warnings), loss, (*read.unknown, *read.foreign), trigger)


class _Read:
    """The layers of one file, one after the other.

    Attributes:
        deltas, losses: by layer key, as of `InputLora`; the loss of each layer
        unknown: keys of the file that are not understood, or not used
        foreign: those that the model, or the WebUI's way with this model, has no place for
        by_rows: layers whose DoRA the WebUI reads otherwise
    """

    def __init__(self, concept: Concept, file: LoraFile, host: Host, foreign: list[str], *, shapes_only: bool) -> None:
        self._concept, self._file, self._host, self._shapes_only = concept, file, host, shapes_only
        # in RAM: on a card they would be in the way while none of them is active
        self._kept_on = "meta" if shapes_only else "cpu"
        self.deltas: dict[str, Factors] = {}
        self.losses: dict[str, float] = {}
        self.unknown, self.foreign, self.by_rows = list(file.unknown), foreign, []

    def add(self, key: str, name: str, parameters: Mapping[str, Tensor]) -> None:
        """One layer.

        Args:
            key, name: the host's key of it, and the file's
            parameters: as the file has them
        """
        layer, weight = self._host.layers()[key], self._weight(key)
        if parameters.keys() <= _BIAS_ALONE:
            # the WebUI reads a bias only where the whole layer is written out
            self.unknown += [self._file.own_key(name, parameter) for parameter in parameters]
            return
        delta = layer_delta(
            *(key, parameters, self._concept.lora, layer.weight),
            dyn=self._concept.dyn,
            factor=not self._shapes_only,
            device="cpu" if self._shapes_only else self._host.device,
        )
        own = self._file.own_key(name)
        if _of_all_channels(delta.factors, layer):
            why = "the WebUI reads no LoRA of all that an inpainting checkpoint's first layer reads"
            self.foreign += [f"{self._file.own_key(name, parameter)} ({why})" for parameter in parameters]
            return
        if delta.factors.shape != layer.shape:
            raise LoraclrError(
                f"{_misfit(self._concept, self._host)}: {own} is {list(delta.factors.shape)} in the LoRA and "
                f"{list(layer.shape)} in the model. {_remedy(self._file)}"
            )
        self.unknown += [self._file.own_key(name, parameter) for parameter in delta.unused]
        if weight == 0:
            return
        self.by_rows += [own] if delta.by_rows else []
        self.deltas[key] = evened(delta.factors.scaled(weight)).to(self._kept_on)
        self.losses[key] = delta.loss
        if delta.bias is not None and bias_key(key) in self._host.layers():
            self.deltas[bias_key(key)] = delta.bias.scaled(weight).to(self._kept_on)
        elif delta.bias is not None:
            bias = next(parameter for parameter in ("diff_b", "b_norm") if parameter in parameters)
            self.foreign.append(f"{self._file.own_key(name, bias)} (the layer has no bias that a LoRA can change)")

    def _weight(self, key: str) -> float:
        return self._concept.te_weight if is_text_encoder(key) else self._concept.unet_weight

    def warnings(self) -> list[str]:
        """What a person should know of the layers."""
        warnings = _warnings(self._concept.label, self.unknown, self.foreign, self.losses)
        if self.by_rows:
            warnings.append(
                f"{self._concept.label}: its DoRA has a length for each channel that leaves a layer ({self.by_rows[0]}, …), "
                "which the WebUI does not read so in a prompt: there the LoRA alone looks otherwise. The merge applies it as "
                "it was trained."
            )
        return warnings + _unlike_a_prompt(self._concept, self.deltas, self._host)


#: of a layer of which nothing else is there
_BIAS_ALONE = {"diff_b", "alpha", "scale"}


def _called(concept: Concept, file: LoraFile) -> tuple[Concept, Trigger | None]:
    """The concept with its trigger words, and where they were found if somebody had to look for them."""
    wanted = concept.kind == "subject" or concept.trigger is None
    if concept.trigger or concept.prompts or not wanted:
        return replace(concept, trigger=concept.trigger or ""), None
    found = find_trigger(file.path, file.metadata)
    if concept.kind == "style" and found.source == "name":
        return replace(concept, trigger=""), None  # a style needs none
    return replace(concept, trigger=found.words), found


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


def _in_the_model(
    file: LoraFile, concept: Concept, host: Host
) -> tuple[dict[str, tuple[str, Mapping[str, Tensor]]], list[tuple[str, str]]]:
    """The file's layers by the host's keys, each with the file's own, and layer and parameter of what the model does not have.

    Raises:
        LoraclrError: it was made for another family, hardly a layer is in the model, or one is there under two names
    """
    layers, family = host.layers(), family_of(file)
    misfit = _misfit(concept, host)
    # what the metadata call XL may be its refiner's
    fitting = {None, host.family.name, *((SDXL.name,) if host.family is REFINER else ())}
    if family not in fitting:
        raise LoraclrError(f"{misfit}. {_remedy(file)}")
    found: dict[str, tuple[str, Mapping[str, Tensor]]] = {}
    for name, parameters in file.layers.items():
        key = host.aliases.get(name, name)
        if key in found:
            one, other = file.own_key(found[key][0]), file.own_key(name)
            raise LoraclrError(
                f"{concept.lora} holds {key} twice, under two names ({one} and {other}): keep one of them."
            )
        found[key] = (name, parameters)
    foreign = [(name, parameter) for key, (name, own) in found.items() if key not in layers for parameter in own]
    strange = [*file.unknown, *(file.own_key(*own) for own in foreign)]
    count = len(file.unknown) + sum(map(len, file.layers.values()))
    if 2 * len(strange) > count:
        raise LoraclrError(
            f"{misfit}: {len(strange)} of its {count} keys have no place in the model ({strange[0]}, …). {_remedy(file)}"
        )
    return {key: own for key, own in found.items() if key in layers}, foreign


def _misfit(concept: Concept, host: Host) -> str:
    return f"{concept.lora} does not fit {host.checkpoint} ({host.family.name})"


def _warnings(label: str, unknown: list[str], foreign: list[str], losses: Mapping[str, float]) -> list[str]:
    """What was left out, and what factoring lost."""
    warnings = []
    if unknown:
        warnings.append(f"{label}: {len(unknown)} keys are not understood and left out ({_some(unknown)}).")
    if foreign:
        warnings.append(f"{label}: {len(foreign)} keys have no place in the model and are left out ({_some(foreign)}).")
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
