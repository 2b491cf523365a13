"""One layer at a time: what each concept does there becomes a least-squares problem, and a method solves it.

layer_problem      the problem
objective          the contrastive objective
error_units        in which a concept's errors are measured
solvers            linear and quasi-Newton solvers
methods            the merge methods, one file each
layerwise          a layer merged by a method, and cut to a rank
"""

from .error_units import units
from .layer_problem import LayerProblem, Recording
from .layerwise import Cut, MergedLayer, merge_layer
from .methods import EFFORT, METHODS, Method, Procedure, all_baselines, all_efforts, find_method
from .objective import LEAST_CONCEPTS, RefinementOptions, Terms, output_terms, style_terms

__all__ = [
    "Cut",
    "EFFORT",
    "LEAST_CONCEPTS",
    "LayerProblem",
    "METHODS",
    "MergedLayer",
    "Method",
    "Procedure",
    "Recording",
    "RefinementOptions",
    "Terms",
    "all_baselines",
    "all_efforts",
    "find_method",
    "merge_layer",
    "output_terms",
    "style_terms",
    "units",
]
