"""LoRACLR's contrastive merge: closed form, then the scale-free hinge, then (by effort) the model's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...model import Factors
from ...request import option
from ..layer_problem import LayerProblem
from ..objective import LEAST_CONCEPTS, LayerObjective, RefinementOptions, Terms
from ..solvers import minimize
from . import LayerResult, merge_method
from .ridge import closed_form

EFFORTS = ("layers", "fast", "balanced", "thorough")


@dataclass(frozen=True)
class ContrastiveOptions:
    """Options of the contrastive merge; all of them act by default."""

    effort: str = option(
        "balanced",
        "layers: layer by layer only, without gradients; the others: then at the model's output, with more and more steps.",
        choices=EFFORTS,
    )
    positive: float = option(
        1.0, "Weight of keeping each concept as its own LoRA makes it.", minimum=0.0, maximum=100.0
    )
    negative: float = option(0.1, "Weight of staying away from the nearest other concept.", minimum=0.0, maximum=100.0)
    margin: float = option(
        1.0, "How far to stay away: 1 is as far as the concept's own LoRA is.", minimum=0.0, maximum=2.0
    )
    lambda_delta: float = option(0.001, "Pull back towards the closed form.", minimum=0.0, maximum=10.0)
    ridge: float = option(
        0.01,
        "Pull of the closed form towards the average of the LoRAs, relative to the energy of the inputs.",
        minimum=0.0,
        maximum=10.0,
    )
    layer_steps: int = option(5, "Steps of the hinge in each layer.", minimum=0, maximum=1000)
    steps: int = option(
        0, "Steps at the model's output; 0: by effort and number of concepts.", minimum=0, maximum=100000
    )
    batch_size: int = option(
        4, "Predictions of single concepts compared in each step at the output.", minimum=1, maximum=1024
    )
    scenes: int = option(
        4, "Predictions of several concepts side by side compared in each step; 0: none.", minimum=0, maximum=1024
    )
    contrast: float = option(
        0.5, "Weight of not drawing another concept in one's place, at the output.", minimum=0.0, maximum=100.0
    )
    rollouts: int = option(
        -1,
        "Pictures of two that the merge draws itself, twice on the way, for each concept; 0: none, -1: by effort.",
        minimum=-1,
        maximum=1024,
    )
    learning_rate: float = option(0.007, "Of the steps at the output (Muon).", minimum=1e-6, maximum=1.0)

    @property
    def terms(self) -> Terms:
        return Terms(self.positive, self.negative, self.margin, self.lambda_delta, self.contrast)


#: steps at the output for each concept
STEPS = {"layers": 0, "fast": 20, "balanced": 64, "thorough": 190}
#: pictures that the merge draws itself, likewise: of few steps it has learnt too little for them to help (docs/method.md)
ROLLOUTS = {"layers": 0, "fast": 0, "balanced": 4, "thorough": 4}


def refinement_options(options: ContrastiveOptions, concepts: int) -> RefinementOptions | None:
    """What to do at the model's output after the layers are merged; None for nothing."""
    counted = max(concepts, LEAST_CONCEPTS) if concepts > 1 else concepts
    steps = options.steps or STEPS[options.effort] * counted
    if options.effort == "layers" or steps == 0:
        return None
    rollouts = ROLLOUTS[options.effort] if options.rollouts < 0 else options.rollouts
    return RefinementOptions(
        options.terms,
        steps,
        options.batch_size,
        options.scenes,
        options.learning_rate,
        rollouts=rollouts if options.scenes else 0,
    )


@merge_method(
    name="contrastive",
    label="LoRACLR (contrastive)",
    source="LoRACLR, arXiv 2412.09622",
    options=ContrastiveOptions,
    refinement=refinement_options,
)
def contrastive(problem: LayerProblem, options: ContrastiveOptions) -> LayerResult:
    """Keeps every concept as its own LoRA makes it, and away from what the other concepts would make of it.

    Starts at the closed form (`ridge`) and minimises `LayerObjective` over the joint column space by L-BFGS. Exact rank
    `Σ r_i`. Layer by layer the UNet cannot keep many concepts apart (the same few directions carry them all); the
    refinement at the model's output, which follows for every effort but layers, can. Costs, beyond the closed
    form, `layer_steps` products of the inputs with `M`, both in coordinates of the inputs' span where rows are few.
    """
    basis = problem.column_space()
    solution, start = closed_form(problem, basis, options.ridge)
    notes = {"ridge": solution.ridge, "repairs": solution.repairs}
    if not options.layer_steps:
        return LayerResult(Factors(basis, start), notes)
    reduced = problem.reduced(basis)
    inner = reduced.inside(start)
    identity = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    objective = LayerObjective(reduced.problem, identity, inner, options.terms, start_energy=start.square().sum())
    minimum = minimize(objective, inner, max_steps=options.layer_steps)
    notes |= {"steps": minimum.steps, "active_hinges": objective.active_share(minimum.value)}
    return LayerResult(Factors(basis, start + reduced.outside(minimum.value - inner)), notes)
