"""One layer at a time: what each concept does there becomes a least-squares problem, and a method solves it.

layer_problem      the problem
objective          the contrastive objective
solvers            linear and quasi-Newton solvers
methods            the merge methods, one file each
"""

from .layer_problem import LayerProblem, Rows
from .methods import METHODS, LayerResult, Method, find_method
from .methods.contrastive import EFFORTS
from .objective import RefinementOptions, Terms, output_terms

__all__ = [
    "EFFORTS",
    "LayerProblem",
    "LayerResult",
    "METHODS",
    "Method",
    "RefinementOptions",
    "Rows",
    "Terms",
    "find_method",
    "output_terms",
]
