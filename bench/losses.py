"""Other metric-learning losses in place of the contrastive term at the model's output: the outlook of the LoRACLR paper.

Each has the form of `solving.output_terms`, and puts its own term where that has the contrast; the positive term stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lib_loraclr.refining import batches
from lib_loraclr.solving import output_terms

TermsFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
#: of the triplet loss, relative to the distance of the two concepts; temperature of InfoNCE, likewise
MARGIN, TEMPERATURE = 0.5, 0.5


def _distances(prediction: Tensor, target: Tensor, other: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances to the concept and to the other, in units of the squared distance between them, `[b, windows]` each, and
    where there are two to keep apart."""

    def by_window(latents: Tensor) -> Tensor:
        return torch.stack(latents.chunk(apart.shape[1], dim=-1), dim=1).flatten(2)

    between = by_window(target - other).square().sum(2)
    on = apart & (between > 0)
    unit = between.where(on, torch.ones_like(between))
    own, others = (by_window(prediction - point).square().sum(2) / unit for point in (target, other))
    return own, others, on


def triplet(prediction: Tensor, target: Tensor, scale: Tensor, other: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
    """`max(0, d_p² - d_n² + m)` (Schroff et al., arXiv 1503.03832, eq. 3), squared distances relative to `d_pn²`."""
    own, others, on = _distances(prediction, target, other, apart)
    positive, _ = output_terms(prediction, target, scale, other, apart)
    return positive, ((own - others + MARGIN).clamp_min(0) * on).sum(1)


def info_nce(prediction: Tensor, target: Tensor, scale: Tensor, other: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
    """`-log softmax` of the concept over itself and the other, by minus the squared distances (van den Oord et al.,
    arXiv 1807.03748, eq. 4), `log(1 + exp((d_p² - d_n²) / τ))`."""
    own, others, on = _distances(prediction, target, other, apart)
    positive, _ = output_terms(prediction, target, scale, other, apart)
    return positive, (torch.nn.functional.softplus((own - others) / TEMPERATURE) * on).sum(1)


@contextmanager
def refining_with(terms: TermsFunction) -> Iterator[None]:
    """Refinements inside use these terms."""
    usual = batches.output_terms
    batches.output_terms = terms
    try:
        yield
    finally:
        batches.output_terms = usual
