"""What the model predicts with LoRAs active, kept in a work folder, and taken from there where it was computed before.

A prediction depends on the model, on what the active LoRAs change in it, and on what is asked; on nothing else in the merge. So a
concept's own predictions are found again when it is merged with others, and all of them when a merge that was ended is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..files import WorkFolder, code_key, content_key, file_key
from ..model import Factors, Host
from .sampling import evaluated

#: what the model is asked, so that whatever makes it predict otherwise (precision, settings of a host, threads) is seen
_PROBE = ("", "a photo of a cat on a red background")


class Shelf:
    """Predictions of one loaded model.

    Attributes:
        model: digest of all that its predictions depend on, but for the LoRAs and what is asked
    """

    def __init__(
        self,
        folder: WorkFolder,
        host: Host,
        deltas: Sequence[Mapping[str, Factors]],
        embeddings: Mapping[str, Tensor],
    ) -> None:
        """
        Args:
            host: knows the embeddings, and reads prompts from the layer that it will read them from
            deltas: per concept, its weight inside
            embeddings: that prompts can call
        """
        self.folder, self.model = folder, model_key(host, embeddings)
        self._deltas, self._digests = deltas, {}

    def tensors(
        self, what: str, active: Sequence[int], content: Sequence[object], compute: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """What `compute` computes, or computed before.

        Args:
            what: kind of thing
            active: the concepts that are active
            content: all else that it depends on, as for `content_key`
        """
        key = content_key(what, self.model, [self.digest(i) for i in active], content)
        found = self.folder.find(key)
        if found is not None:
            return found.tensors
        made = compute()
        self.folder.keep(key, made)
        return made

    def digest(self, concept: int) -> str:
        """Of what a concept changes."""
        if concept not in self._digests:
            deltas = self._deltas[concept]
            self._digests[concept] = content_key([(key, deltas[key].up, deltas[key].down) for key in sorted(deltas)])
        return self._digests[concept]


@torch.no_grad()
def model_key(host: Host, embeddings: Mapping[str, Tensor]) -> str:
    """Digest of a loaded model: of the file it came from, of this program, and of what it predicts here and now."""
    x = torch.randn(len(_PROBE), host.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.full((len(_PROBE),), len(host.alphas_cumprod) // 2)
    conditioning = host.encode(_PROBE)
    predicted = evaluated(host, x.to(host.device), t.to(host.device), conditioning)
    schedule = (host.prediction_type, host.alphas_cumprod.cpu(), host.clip_skip, host.default_size)
    config = host.checkpoint_path.with_suffix(".yaml")
    return content_key(
        (host.name, torch.__version__, str(host.device.type), code_key()),
        (file_key(host.checkpoint_path), file_key(config)),
        (schedule, embeddings, conditioning.tensors, predicted),
    )
