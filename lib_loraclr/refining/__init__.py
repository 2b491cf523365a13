"""The whole model at once: the contrastive objective at its output, and how much of each concept is left.

refinement         gradient steps on all factors together: batches, optimizers, and fitting what the memory holds
on_policy          the scenes that the merge draws itself on the way
retention          what survived, measured on the model's own predictions
recognition        whom the merged model draws
state              the refinement's state, kept while it runs
trained            the factors that are trained, side by side in memory
"""

from .batches import style_rows
from .on_policy import evaluations as own_evaluations
from .recognition import Recognition, gather_candidates, questions, recognise
from .refinement import CHECKS, ROLLOUTS_AFTER, Refined, refine
from .retention import Retention, drift_of_singles, measure, questions_each, squared_errors
from .state import StateKeeper, factor_tensors, factors_of
from .trained import needs_copies

__all__ = [
    "CHECKS",
    "ROLLOUTS_AFTER",
    "Recognition",
    "Refined",
    "Retention",
    "StateKeeper",
    "drift_of_singles",
    "factor_tensors",
    "factors_of",
    "gather_candidates",
    "measure",
    "needs_copies",
    "own_evaluations",
    "questions",
    "questions_each",
    "recognise",
    "refine",
    "squared_errors",
    "style_rows",
]
