"""The whole model at once: the contrastive objective at its output, and how much of each concept is left.

refinement         gradient steps on all factors together: batches, optimizers, and fitting what the memory holds
retention          what survived, measured on the model's own predictions
recognition        whom the merged model draws
"""

from .recognition import Recognition, gather_candidates, questions, recognise
from .refinement import CHECKS, Refined, refine
from .retention import Retention, drift_of_singles, measure

__all__ = [
    "CHECKS",
    "Recognition",
    "Refined",
    "Retention",
    "drift_of_singles",
    "gather_candidates",
    "measure",
    "questions",
    "recognise",
    "refine",
]
