"""Finished merges that another one goes on from: one that is refined further, or has concepts added to it, or several joined."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from ..errors import LoraclrError
from ..files import LoraFile, read_header, require_safetensors, tensor_bytes
from ..model import Factors, Host, zero
from ..output import Begun, first_concepts, read_recipe
from ..progress import Stage
from ..recording import InputLora, load_input
from ..request import Concept, MergeRequest
from ..solving import MergedLayer, RefinementOptions

#: stages that are left out where a start has all layers
MERGED_ANEW = (Stage.TEXT_INPUTS, Stage.TEXT_LAYERS, Stage.UNET_INPUTS, Stage.UNET_LAYERS)
#: of the steps of a merge from nothing, those of one that goes on; and at least so many times a new concept's own: with twice
#: its own, a third concept beside two was not learnt (docs/scale.md)
MORE, FOR_EACH_NEW = 1 / 3, 3


@dataclass(frozen=True)
class Finished:
    """A finished merge, as far as another one goes on from it.

    Attributes:
        factors: layer key -> its factors, in any precision and on any device
        labels: the concepts that are in it
        first: those of the labels that came first when it was merged, in the order that they had then
    """

    factors: Mapping[str, Factors]
    labels: frozenset[str]
    first: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """sha256 of the factors' numbers: what tells this merge from any other."""
        digest = hashlib.sha256()
        for key in sorted(self.factors):
            digest.update(key.encode())
            digest.update(tensor_bytes(self.factors[key].up.float()))
            digest.update(tensor_bytes(self.factors[key].down.float()))
        return digest.hexdigest()


@dataclass(frozen=True)
class Start:
    """What a merge goes on from, in place of one layer by layer of what is in it.

    Attributes:
        merges: have no concept in common; concepts of the request that are in none are added to them
        steps: of the refinement that follows; 0: a third of a merge's own, and at least three times the new concepts' own
    """

    merges: tuple[Finished, ...]
    steps: int = 0

    @cached_property
    def labels(self) -> frozenset[str]:
        """The concepts that are in one of them."""
        return frozenset[str]().union(*(merge.labels for merge in self.merges))

    @cached_property
    def hash(self) -> str:
        """What tells this start from any other: of several merges, sha256 of their hashes in their order."""
        hashes = [merge.hash for merge in self.merges]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def begun(self, inputs: Sequence[InputLora]) -> Begun:
        """What a file says of it.

        Args:
            inputs: in their order
        """
        labels = [lora.concept.label for lora in inputs]
        return Begun(self.hash, tuple(label for label in labels if label in self.labels), self.steps)

    @property
    def seed(self) -> int:
        """Added to a merge's own, so that other points are drawn than the start was refined on."""
        return 1 + int(self.hash[:8], 16)

    def refinement(self, whole: RefinementOptions | None, labels: Collection[str]) -> RefinementOptions:
        """The refinement that follows.

        Args:
            whole: that of a merge from nothing
            labels: of all concepts of the merge, in the order of their numbers

        Raises:
            LoraclrError: there is none, by the method or its effort
        """
        if whole is None:
            raise LoraclrError(
                "A finished merge can only be gone on from with a refinement, which this method and effort do without: choose "
                "contrastive with effort fast, balanced or thorough."
            )
        new = frozenset(number for number, label in enumerate(labels) if label not in self.labels)
        least = FOR_EACH_NEW * len(new) * whole.steps / len(labels)
        steps = self.steps or math.ceil(min(whole.steps, max(MORE * whole.steps, least)))
        return replace(whole, steps=steps, new=new)


def start_from(paths: Sequence[Path], host: Host, steps: int = 0) -> Start:
    """Merged LoRAs, as ones to go on from; what is merged then is what their recipes name, with the new concepts added.

    Args:
        host: holds the checkpoint that they were made on
        steps: as of `Start`

    Raises:
        LoraclrError: one is no LoRA, not one that LoRACLR merged, or not for the loaded model
    """
    return Start(tuple(_finished(path, host) for path in paths), steps)


def _finished(path: Path, host: Host) -> Finished:
    metadata = read_header(path).metadata
    request, _ = read_recipe(metadata, str(path))
    factors = load_input(Concept(str(path)), host).deltas
    return Finished(factors, frozenset(concept.label for concept in request.concepts), first_concepts(metadata))


def merged_from(path: Path, candidates: Callable[[str], Iterable[Path]], remedy: str) -> MergeRequest:
    """The request inside a merged file, its LoRAs found again by name and told apart by hash.

    Args:
        candidates: name of a LoRA's file -> those of that name which are there
        remedy: what to do where the right one is not among them

    Raises:
        LoraclrError: it is no merged file, or a LoRA is nowhere to be found
    """
    require_safetensors(path)
    request, hashes = read_recipe(read_header(path).metadata, str(path))
    concepts = []
    for concept in request.concepts:
        # only ever a name: a path inside a file from anywhere could lead anywhere
        found = list(candidates(Path(concept.lora.replace("\\", "/")).name))
        right = [candidate for candidate in found if LoraFile(candidate, {}, {}).hash == hashes.get(concept.label)]
        if not right:
            why = "another file of that name is there" if found else "it is not there"
            raise LoraclrError(f"{path} was made from {concept.lora}, but {why}: {remedy}.")
        concepts.append(replace(concept, lora=str(right[0])))
    return replace(request, concepts=tuple(concepts))


def ordered(inputs: Sequence[InputLora], start: Start | None) -> list[InputLora]:
    """Inputs in the order of a merge's own numbers: by content, so that the order in which the LoRAs were named changes nothing.

    What a start holds comes first, in the order that it had when that was merged, so that of the first merge it is recorded
    with the same seeds.
    """
    merges = start.merges if start else ()
    places = {label: place for merge in merges for place, label in enumerate(merge.first)}

    def place(lora: InputLora) -> tuple:
        label = lora.concept.label
        part = next((k for k, merge in enumerate(merges) if label in merge.labels), len(merges))
        return part, places.get(label, len(places)), lora.order

    return sorted(inputs, key=place)


class Networks:
    """What a merge's layers are made of: each concept's own deltas, or a finished merge that stands for those that are in it."""

    def __init__(self, inputs: Sequence[InputLora], start: Start | None) -> None:
        merges = start.merges if start else ()
        self._deltas = [merge.factors for merge in merges]
        self._of: list[int] = []
        for lora in inputs:
            known = next((k for k, merge in enumerate(merges) if lora.concept.label in merge.labels), None)
            self._of.append(len(self._deltas) if known is None else known)
            if known is None:
                self._deltas.append(lora.deltas)

    def deltas(self, key: str) -> list[Factors | None]:
        """What each of them does in a layer."""
        return [network.get(key) for network in self._deltas]

    def of(self, concepts: Sequence[int]) -> tuple[int, ...]:
        """Those that stand for some concepts."""
        return tuple(sorted({self._of[i] for i in concepts}))


def as_layers(merge: Finished, shapes: Mapping[str, tuple[int, int]]) -> dict[str, MergedLayer]:
    """A finished merge's layers, where nothing has to be merged any more.

    Args:
        shapes: layer key -> `(d_out, d_in)` of the layers that are wanted; one that the merge leaves alone does nothing
    """
    layers = {}
    for key, shape in shapes.items():
        factors = merge.factors.get(key) or zero(*shape, like=torch.empty(0))
        layers[key] = MergedLayer(factors.to("cpu", torch.float32), {}, 1.0)
    return layers
