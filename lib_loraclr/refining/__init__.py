"""The whole model at once: the contrastive objective at its output, and how much of each concept is left.

refinement         gradient steps on all factors together
retention          what survived, measured on the model's own predictions
"""

from .refinement import CHECKS, Refined, refine
from .retention import Retention, drift_of_singles, measure

__all__ = ["CHECKS", "Refined", "Retention", "drift_of_singles", "measure", "refine"]
