"""Merge methods: how the deltas of one layer become one.

A method is one plain function `(problem, options) -> LayerResult`, returned unchanged by its decorator. A new
one costs one file and one import line at the end of this one, and then shows up in every door, in the contract tests and in
the benchmark. What others do instead is in `baselines`: known by name to requests, and offered nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import unknown_name
from ...model import Factors
from ...request import MergeRequest, parse_options, schema
from ..layer_problem import LayerProblem
from ..objective import RefinementOptions


@dataclass(frozen=True)
class LayerResult:
    """What a method made of one layer.

    Attributes:
        factors: the merged delta, up `[d_out, r]`, down `[r, d_in]`
        notes: figures of the solution, for the report (name -> number)
    """

    factors: Factors
    notes: Mapping[str, float] = field(default_factory=dict)


class MethodFunction(Protocol):
    def __call__(self, problem: LayerProblem, options: Any) -> LayerResult: ...


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: what requests call it
        label: what people read
        source: the paper it comes from
        summary: the first line of the function's docstring
        function: the method
        options: its option dataclass
        records: whether it needs recorded inputs
        weight: whether it needs the layer's own weight
        refinement: (options, number of concepts) -> what to do at the model's output afterwards, or None for nothing
    """

    name: str
    label: str
    source: str
    summary: str
    function: MethodFunction
    options: type
    records: bool
    weight: bool
    refinement: Callable[[Any, int], RefinementOptions | None]

    @property
    def efforts(self) -> tuple[str, ...]:
        """What a person chooses between time and quality by, the quickest first; none where the method has no such option."""
        return next((item.choices for item in schema(self.options) if item.name == EFFORT), ())


#: the option by which a method that has it trades time for quality; every door shows it first
EFFORT = "effort"
#: what every door offers
METHODS: dict[str, Method] = {}
_BASELINES: dict[str, Method] = {}


@dataclass(frozen=True)
class NoOptions:
    """For methods without options."""


def merge_method(
    *,
    name: str,
    label: str,
    source: str,
    options: type = NoOptions,
    records: bool = True,
    weight: bool = False,
    refinement: Callable[[Any, int], RefinementOptions | None] = lambda options, concepts: None,
    baseline: bool = False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Register a merge method.

    Args:
        baseline: whether it is there to be compared with, and not offered

    Raises:
        ValueError: the name is taken
    """

    def register(function: MethodFunction) -> MethodFunction:
        if name in METHODS or name in _BASELINES:
            raise ValueError(f"the merge method {name!r} is registered twice")
        summary = (function.__doc__ or "").strip().splitlines()[0]
        (_BASELINES if baseline else METHODS)[name] = Method(
            name, label, source, summary, function, options, records, weight, refinement
        )
        return function

    return register


def all_efforts() -> tuple[str, ...]:
    """The efforts of every method that has some."""
    return tuple(dict.fromkeys(effort for method in METHODS.values() for effort in method.efforts))


def all_baselines() -> Mapping[str, Method]:
    """What others do instead; read when it is asked for, as a WebUI that starts never is."""
    importlib.import_module(f"{__name__}.baselines")
    return _BASELINES


def find_method(name: str) -> Method:
    """The method or baseline of that name.

    Raises:
        LoraclrError: there is none
    """
    if name in METHODS:
        return METHODS[name]
    known = {**METHODS, **all_baselines()}
    if name not in known:
        raise unknown_name("method", name, known)
    return known[name]


@dataclass(frozen=True)
class Procedure:
    """The method of a request, its options checked.

    Attributes:
        method: the method
        options: of its options class
    """

    method: Method
    options: Any

    @classmethod
    def of(cls, request: MergeRequest) -> Procedure:
        """Raises LoraclrError for an unknown method, or an option that it does not take."""
        method = find_method(request.method)
        return cls(method, parse_options(method.options, request.options, f"method {method.name}"))

    def refinement(self, concepts: int) -> RefinementOptions | None:
        """What to do at the model's output after the layers are merged; None for nothing."""
        return self.method.refinement(self.options, concepts)


from . import average, contrastive, paper, ridge, weighted_sum  # noqa: E402, F401  (each registers itself)
