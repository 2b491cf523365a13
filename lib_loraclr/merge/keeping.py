"""What a merge keeps in a work folder while it runs, so that one that was ended goes on where it was (docs/scale.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..files import WorkFolder, content_key
from ..model import Host
from ..recording import InputLora, Shelf, bundled_embeddings
from ..refining import StateKeeper, factor_tensors, factors_of
from ..request import MergeRequest
from ..solving import MergedLayer
from .start import Start


class Keeping:
    """One merge's part of a work folder.

    Attributes:
        shelf: what was recorded; other merges find what they have in common with this one
        state: of the refinement
    """

    def __init__(
        self, folder: WorkFolder, request: MergeRequest, inputs: Sequence[InputLora], host: Host, start: Start | None
    ) -> None:
        """
        Args:
            inputs: in the order of the merge's own numbers
            host: as the merge will ask it: it knows the embeddings, and reads prompts from the layer that is meant
        """
        self._folder = folder
        self.shelf = Shelf(folder, host, [lora.deltas for lora in inputs], bundled_embeddings(inputs))
        digests = [self.shelf.digest(i) for i in range(len(inputs))]
        begun = (start.hash, sorted(start.labels), start.steps) if start else None
        key = content_key(self.shelf.model, digests, _asked(request, inputs), begun)
        self._layers = content_key("layers", key)
        self.state = StateKeeper(folder, content_key("refinement", key))

    @property
    def trouble(self) -> tuple[str, ...]:
        """A warning where the folder keeps nothing more."""
        return (self._folder.trouble,) if self._folder.trouble else ()

    def find_layers(self) -> dict[str, MergedLayer] | None:
        """The merge layer by layer, if it was finished."""
        found = self._folder.find(self._layers)
        if found is None:
            return None
        factors = factors_of("layer", found.tensors, found.said)
        return {key: MergedLayer(factors[key], **told) for key, told in found.said.items()}

    def keep_layers(self, layers: Mapping[str, MergedLayer]) -> None:
        """The merge layer by layer is finished."""
        told = {key: {"notes": layer.notes, "kept": layer.kept} for key, layer in layers.items()}
        self._folder.keep(
            self._layers, factor_tensors("layer", {key: layer.factors for key, layer in layers.items()}), told
        )


def _asked(request: MergeRequest, inputs: Sequence[InputLora]) -> dict[str, Any]:
    """The request without where files lie, and the concepts in the merge's own order."""
    concepts = tuple(replace(lora.concept, lora=lora.concept.label) for lora in inputs)
    return replace(request, concepts=concepts).to_dict()
