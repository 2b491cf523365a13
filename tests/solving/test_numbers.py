"""Numbers at their limits: a merge of a layer is finite, or ends with the error that says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_loraclr.errors import LoraclrError
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.request.options import parse_options
from lib_loraclr.solving.layer_problem import LayerProblem
from lib_loraclr.solving.layerwise import Cut, merge_layer
from lib_loraclr.solving.methods import METHODS, Method
from tests.solving.test_layer_problem import random_problem

SHORT = {"paper": {"iterations": 3}}


def single(problem: LayerProblem, deltas: float = 1.0, inputs: float = 1.0) -> LayerProblem:
    """In fp32, as merges are, in other units."""
    scaled = tuple(d and Factors((d.up * deltas).float(), d.down.float()) for d in problem.deltas)
    recorded = tuple(replace(r, inputs=(r.inputs * inputs).float()) for r in problem.recordings)
    return replace(problem, deltas=scaled, recordings=recorded)


def identical(problem: LayerProblem) -> LayerProblem:
    """Every concept is the same LoRA, recorded on the same inputs."""
    first = problem.deltas[0]
    recorded = tuple(replace(r, inputs=problem.recordings[0].inputs) for r in problem.recordings)
    return replace(problem, deltas=tuple(first for _ in problem.deltas), recordings=recorded)


def without_effect(problem: LayerProblem) -> LayerProblem:
    zero = tuple(d and Factors(torch.zeros_like(d.up), d.down) for d in problem.deltas)
    return replace(problem, deltas=zero)


def of_one_direction(problem: LayerProblem) -> LayerProblem:
    """Inputs of rank one, all of them."""
    row = problem.recordings[0].inputs[:1]
    recorded = tuple(
        replace(r, inputs=torch.linspace(0.5, 2, len(r.inputs))[:, None] * row) for r in problem.recordings
    )
    return replace(problem, recordings=recorded)


def silent(problem: LayerProblem) -> LayerProblem:
    """Nothing enters the layer."""
    return replace(problem, recordings=tuple(replace(r, inputs=torch.zeros_like(r.inputs)) for r in problem.recordings))


def at_the_edge_of_half(problem: LayerProblem) -> LayerProblem:
    """Inputs between fp16's largest number and its smallest."""
    sizes = torch.tensor([65504.0, 6e-8, 1.0])
    recorded = [
        replace(r, inputs=(r.inputs.sign() * sizes[i % 3]).half().float()) for i, r in enumerate(problem.recordings)
    ]
    return replace(problem, recordings=tuple(recorded))


usual = single(random_problem())
LIMITS = {
    "identical concepts": identical(usual),
    "identical concepts of one row": identical(single(random_problem(rows=1))),
    "no effect at all": without_effect(usual),
    "one row": single(random_problem(rows=1)),
    "inputs of one direction": of_one_direction(usual),
    "nothing enters": silent(usual),
    "deltas of 1e-8": single(random_problem(), deltas=1e-8),
    "deltas of 1e8": single(random_problem(), deltas=1e8),
    "inputs of 1e-8": single(random_problem(), inputs=1e-8),
    "inputs of 1e8": single(random_problem(), inputs=1e8),
    "both of 1e8": single(random_problem(), deltas=1e8, inputs=1e8),
    "both of 1e-8": single(random_problem(), deltas=1e-8, inputs=1e-8),
    "the edge of half precision": at_the_edge_of_half(usual),
    "more rank than the layer has": single(random_problem(ranks=(6, 6), size=(4, 5))),
}
CUTS = {"auto": Cut("auto", 0.999), "full": Cut("full", 1.0), "rank 2": Cut("2", 1.0)}


def merged(problem: LayerProblem, method: Method, cut: Cut) -> Factors:
    options = parse_options(method.options, SHORT.get(method.name, {}), method.name)
    return merge_layer(problem, method, options, cut).factors


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("problem", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_merge_at_the_limits_is_finite(method: Method, problem: LayerProblem, cut: Cut) -> None:
    found = merged(problem, method, cut)
    assert found.up.isfinite().all() and found.down.isfinite().all()
    assert found.shape == problem.present[0].shape


@pytest.mark.parametrize("method", ["contrastive", "ridge"])
def test_identical_concepts_give_that_concept(method: str) -> None:
    """Not twice it, and not half of it, where no plain prompts ask for nothing on the same inputs."""
    problem = identical(single(random_problem(background=False)))
    found = merged(problem, METHODS[method], CUTS["full"]).dense()
    x, wanted = problem.recordings[0].inputs, problem.deltas[0].dense()
    assert float(((found - wanted) @ x.mT).norm()) < 0.02 * float((wanted @ x.mT).norm())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_effect_stays_none(method: Method) -> None:
    assert float(merged(LIMITS["no effect at all"], method, CUTS["auto"]).dense().abs().max()) == 0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_model_that_overflowed_is_announced(value: float) -> None:
    inputs = usual.recordings[0].inputs.clone()
    inputs[0, 0] = value
    broken = replace(usual, recordings=(replace(usual.recordings[0], inputs=inputs), *usual.recordings[1:]))
    for name in ("contrastive", "ridge"):
        with pytest.raises(
            LoraclrError, match="recorded inputs hold NaN or infinity: the model overflowed; use fp32 or bf16"
        ):
            merged(broken, METHODS[name], CUTS["auto"])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    deltas=st.floats(-8, 8),
    inputs=st.floats(-8, 8),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    rows=st.integers(1, 20),
    alike=st.sampled_from([0.0, 1.0, 100.0]),
    name=st.sampled_from(sorted(METHODS)),
    cut=st.sampled_from(sorted(CUTS)),
)
def test_a_merge_of_any_shape_and_scale_is_finite(
    deltas: float, inputs: float, ranks: list[int], size: tuple[int, int], rows: int, alike: float, name: str, cut: str
) -> None:
    problem = random_problem(ranks=tuple(ranks), size=size, rows=rows, alike=alike)
    found = merged(single(problem, 10**deltas, 10**inputs), METHODS[name], CUTS[cut])
    assert found.up.isfinite().all() and found.down.isfinite().all()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_number_of_threads_changes_no_more_than_rounding(name: str) -> None:
    """Sums are made in another order; on one number of threads a merge is the same bit for bit."""
    problem, before = single(random_problem(size=(96, 160), rows=200)), torch.get_num_threads()
    try:
        found = {}
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            found.setdefault(threads, []).append(merged(problem, METHODS[name], CUTS["full"]).dense())
    finally:
        torch.set_num_threads(before)
    first, again = found[1]
    assert torch.equal(first, again), "the same number of threads, the same bits"
    assert float((found[2][0] - first).norm()) <= 1e-4 * float(first.norm())
