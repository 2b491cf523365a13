"""One contract for every registered method, then what each of them promises beyond it."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_loraclr.errors import LoraclrError
from lib_loraclr.model.low_rank import Factors, zero
from lib_loraclr.request.options import Option, parse_options, schema
from lib_loraclr.solving import methods
from lib_loraclr.solving.layer_problem import LayerProblem, Recording
from lib_loraclr.solving.methods import METHODS, LayerResult, Method, all_baselines, find_method, merge_method
from tests.solving.test_layer_problem import random_problem

ALL = {**METHODS, **all_baselines()}

#: relative, by method: float64 rounding through one factorisation, where nothing else is said
TOLERANCES = {
    # a step of L-BFGS divides by differences of gradients, which multiplies the rounding of those before it
    "contrastive": 1e-7,
    # so does each of Adam's, by the root of the second moment
    "paper": 1e-7,
    "gradient_fusion": 1e-7,
}
CLOSE = 1e-10

#: contracts that a method does not keep, and why
EXCEPTIONS = {
    ("paper", "alone"): "50 steps of 1e-4 from zero do not reach a delta, whatever it is; that is the published method",
    ("paper", "rank"): "it learns a full matrix",
    ("paper", "scale"): "its margin and its steps are absolute; that is the published method",
    ("ties", "alone"): "a fifth of the entries is kept; that is the published method",
    ("ties", "rank"): "a matrix with holes has full rank",
    ("dare", "alone"): "half of the entries are dropped; that is the published method",
    ("dare", "rank"): "a matrix with holes has full rank",
    ("dare", "order"): "what is dropped is drawn in the order of the concepts, which a merge sorts by their content",
    ("kohya_svd", "alone"): "outliers of the factors are cut; that is the tool's method",
    ("ties", "directions"): "a matrix with holes has full rank",
    ("dare", "directions"): "a matrix with holes has full rank",
    ("kohya_svd", "rank"): "its default rank is 4, whatever the LoRAs have",
    ("kohya_svd", "scale"): "the cut is where one factor holds the size, and the other does not",
    (
        "supermerger",
        "split",
    ): "factors are added, so that it matters which of them holds the size; that is the tool's method",
    ("supermerger", "directions"): "the sum of factors has the rank of the largest",
    ("kohya_svd", "directions"): "its default rank is 4",
    ("core_space", "directions"): "of each core it keeps half of the rank that both have together",
    ("core_space", "missing"): "a delta of zeros has a direction in the bases, of which TSV keeps a share",
    ("gradient_fusion", "alone"): "it stops where its iterations end; that is the published method",
    ("gradient_fusion", "scale"): "its first step and its tolerances are absolute; that is the published method",
    ("gradient_fusion", "directions"): "it stops where its iterations end; that is the published method",
    ("knots", "directions"): "four fifths of the coordinates are dropped; that is the published method",
    ("gradient_fusion", "unet_iterations"): "layers this small are solved before",
    ("gradient_fusion", "text_iterations"): "the layers here are the UNet's",
    ("ace", "threshold"): "the deltas here are of one size",
    ("ace", "kept"): "the deltas here are of one size",
    ("iso_c", "alone"): "the singular values are made the same; that is the published method",
    ("core_space", "alone"): "the singular values are made the same; that is the published method",
    ("knots", "alone"): "a fifth of the coordinates is kept; that is the published method",
    ("shared_space", "alone"): "of a LoRA alone half of the rank is kept",
    ("shared_space", "directions"): "the space has half of the rank of all LoRAs together",
    ("ace", "alone"): "it pulls to zero with an absolute ridge, and adds the column means; that is the authors' code",
    ("ace", "rank"): "it adds a vector of column means to what it divides by, and centres rows",
    ("ace", "scale"): "its ridge is absolute; that is the authors' code",
    ("ace", "missing"): "a zero delta counts in its mean and variance of sizes",
}

#: what keeps the suite quick: the contracts hold after any number of steps
SHORT = {"paper": {"iterations": 8}, "gradient_fusion": {"unet_iterations": 5}}

PROBLEMS = {
    "usual": random_problem(),
    "more rank than outputs": random_problem(size=(5, 10)),
    "more rank than inputs": random_problem(ranks=(6, 5, 4), size=(20, 9)),
    "fewer rows than inputs": random_problem(size=(12, 40), rows=5),
    "one rank each": random_problem(ranks=(1, 1)),
    "one concept missing": random_problem(ranks=(2, None, 3)),
    "all but one missing": random_problem(ranks=(None, 2, None)),
    "LoRA-sized deltas": random_problem(scale=1e-3),
}


@pytest.fixture(params=ALL.values(), ids=ALL)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


#: the contracts about recordings are for those that look at them, and the other way round
RECORDING, PLAIN = ([method for method in ALL.values() if method.records is records] for records in (True, False))


@pytest.fixture
def tolerance(method: Method) -> float:
    return TOLERANCES.get(method.name, CLOSE)


def keeps(method: Method, contract: str) -> None:
    """Skip where a method is excepted from a contract."""
    if (method.name, contract) in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[method.name, contract])


def merge(method: Method | str, problem: LayerProblem, **options: object) -> LayerResult:
    method = find_method(method) if isinstance(method, str) else method
    options = {**SHORT.get(method.name, {}), **options}
    return method.function(problem, parse_options(method.options, options, method.name))


def dense(method: Method | str, problem: LayerProblem, **options: object) -> Tensor:
    return merge(method, problem, **options).factors.dense()


def distance(result: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float((result - expected).norm() / expected.norm())


def reordered(problem: LayerProblem, order: list[int]) -> LayerProblem:
    """The same problem with its concepts, and their recordings, in another order."""
    position = {old: new for new, old in enumerate(order)}

    def moved(concepts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(position[i] for i in concepts)

    recordings = [
        replace(recording, active=moved(recording.active), rivals=tuple(moved(rival) for rival in recording.rivals))
        for recording in problem.recordings
    ]
    return replace(
        problem,
        deltas=tuple(problem.deltas[i] for i in order),
        recordings=tuple(sorted(recordings, key=lambda recording: recording.active or (len(order),))),
    )


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_result_has_the_layers_shape_and_type_and_is_finite(method: Method, problem: LayerProblem) -> None:
    result = merge(method, problem)
    assert result.factors.shape == problem.present[0].shape
    assert result.factors.up.dtype == result.factors.down.dtype == torch.float64
    assert result.factors.up.isfinite().all()
    assert result.factors.down.isfinite().all()
    assert result.factors.norm() > 0
    assert all(math.isfinite(figure) for figure in result.notes.values())


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_rank_is_at_most_the_sum_of_the_ranks(method: Method, problem: LayerProblem) -> None:
    keeps(method, "rank")
    assert merge(method, problem).factors.rank <= sum(delta.rank for delta in problem.present)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_order_of_the_concepts_changes_nothing(method: Method, problem: LayerProblem, tolerance: float) -> None:
    keeps(method, "order")
    order = list(reversed(range(len(problem.deltas))))
    assert distance(dense(method, reordered(problem, order)), dense(method, problem)) < tolerance


@pytest.mark.parametrize("method", RECORDING, ids=lambda method: method.name)
def test_other_deltas_for_the_same_recordings_are_another_merge(method: Method) -> None:
    """The control of the test above."""
    problem = random_problem()
    swapped = replace(problem, deltas=problem.deltas[::-1])
    assert distance(dense(method, swapped), dense(method, problem)) > 1e-3


@pytest.mark.parametrize("weight", [1.0, 0.7, -1.3])
def test_one_lora_merged_alone_gives_that_lora_back(method: Method, weight: float, tolerance: float) -> None:
    """A single concept is recorded without the base model (`recording.make_teachers`); every ridge pulls to the LoRA itself."""
    keeps(method, "alone")
    problem = random_problem(ranks=(3,), background=False, scale=weight)
    assert distance(dense(method, problem), problem.deltas[0].dense()) < tolerance


def test_a_concept_missing_in_a_layer_counts_as_one_that_changes_nothing_there(
    method: Method, tolerance: float
) -> None:
    keeps(method, "missing")
    problem = random_problem(ranks=(2, None, 3))
    nothing = zero(12, 10, like=problem.deltas[0].up)
    present = replace(problem, deltas=(problem.deltas[0], nothing, problem.deltas[2]))
    assert distance(dense(method, present), dense(method, problem)) < tolerance


@pytest.mark.parametrize("scale", [1e-5, 1e3])
def test_larger_deltas_give_a_merge_that_is_as_much_larger(method: Method, scale: float, tolerance: float) -> None:
    keeps(method, "scale")
    expected = dense(method, random_problem()) * scale
    assert distance(dense(method, random_problem(scale=scale)), expected) < tolerance


def test_a_problem_is_left_as_it_was_and_merges_the_same_again(method: Method) -> None:
    problem, untouched = random_problem(), random_problem()
    first, second = merge(method, problem), merge(method, problem)
    assert torch.equal(first.factors.up, second.factors.up)
    assert torch.equal(first.factors.down, second.factors.down)
    for delta, before in zip(problem.deltas, untouched.deltas, strict=True):
        assert torch.equal(delta.up, before.up)
        assert torch.equal(delta.down, before.down)
    for recording, before in zip(problem.recordings, untouched.recordings, strict=True):
        assert torch.equal(recording.inputs, before.inputs)


@pytest.mark.parametrize("method", PLAIN, ids=lambda method: method.name)
def test_a_method_that_needs_no_recordings_never_looks_at_them(method: Method) -> None:
    problem = random_problem()
    assert torch.equal(dense(method, replace(problem, recordings=())), dense(method, problem))


def test_every_method_says_what_it_is(method: Method) -> None:
    for text in (method.label, method.source, method.summary):
        assert text
        assert text == text.strip()
    assert "arXiv" in method.source
    assert method.summary.endswith(".")
    assert method.function.__doc__.startswith(method.summary)
    assert find_method(method.name) is method


def test_every_option_has_help_a_default_within_its_range_and_is_checked(method: Method) -> None:
    defaults = method.options()
    assert [item.name for item in schema(method.options)] == [field.name for field in fields(defaults)]
    for item in schema(method.options):
        assert item.help.endswith(".")
        assert item.type in (bool, int, float, str)
        if item.type is str:
            assert item.default in item.choices
            outside = ["surely not among them"]
        elif item.type is not bool:
            assert item.minimum <= item.default <= item.maximum
            outside = [item.minimum - 1, item.maximum + 1, "nan"]
        for value in outside:
            with pytest.raises(LoraclrError, match=f"Option {item.name} of {method.name}"):
                parse_options(method.options, {item.name: value}, method.name)
    assert (
        parse_options(method.options, {item.name: str(item.default) for item in schema(method.options)}, "") == defaults
    )


#: options of the refinement at the model's output, which are seen in `refinement_options` and not in a layer
AT_THE_OUTPUT = {"effort", "steps", "batch_size", "scenes", "rollouts", "contrast", "learning_rate"}
OPTIONS = [(method, item) for method in ALL.values() for item in schema(method.options)]


def another(item: Option) -> object:
    """A value that is not the default."""
    if item.choices:
        return next(choice for choice in reversed(item.choices) if choice != item.default)
    if item.type is bool:
        return not item.default
    if item.default < 0:  # it stands for what something else says
        return item.type(0)
    larger = min(item.type(item.default * 2 or 7), item.maximum)
    return larger if larger != item.default and item.maximum > 1 else item.default / 2


@pytest.mark.parametrize("method, item", OPTIONS, ids=[f"{method.name}-{item.name}" for method, item in OPTIONS])
def test_every_option_is_in_force_by_default(method: Method, item) -> None:
    """Outputs so small that the paper's absolute margin acts too."""
    keeps(method, item.name)
    problem = random_problem(scale=1e-3)
    problem = replace(problem, weight=1e-3 * problem.weight)
    other = another(item)
    changed = method.options(**{item.name: other})
    if method.name == "contrastive" and item.name in AT_THE_OUTPUT:
        assert method.refinement(changed, 4) != method.refinement(method.options(), 4)
        return
    expected = method.function(problem, method.options()).factors.dense()
    assert distance(method.function(problem, changed).factors.dense(), expected) > 1e-9


@pytest.mark.parametrize("known, folder", [(METHODS, "."), (all_baselines(), "baselines")])
def test_every_file_of_a_method_is_registered_under_its_name(known: dict[str, Method], folder: str) -> None:
    files = {path.stem for path in (Path(methods.__file__).parent / folder).glob("*.py")} - {"__init__", "spectra"}
    assert {method.function.__module__.rpartition(".")[2] for method in known.values()} == files == set(known)


def test_no_door_offers_a_baseline_and_requests_know_them_all() -> None:
    assert not set(METHODS) & set(all_baselines())
    assert find_method("ties") is all_baselines()["ties"]


def test_a_name_is_registered_once() -> None:
    before = dict(METHODS)
    with pytest.raises(ValueError, match="'ridge' is registered twice"):

        @merge_method(name="ridge", label="Another", source="arXiv 0000.00000")
        def another(problem: LayerProblem, options: object) -> LayerResult:
            """Never runs."""

    assert before == METHODS


def test_registering_returns_the_function_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", {})

    def function(problem: LayerProblem, options: object) -> LayerResult:
        """Does nothing.

        More about it.
        """

    assert merge_method(name="new", label="New", source="arXiv 0000.00000")(function) is function
    assert methods.METHODS["new"].summary == "Does nothing."


@pytest.mark.parametrize(
    "wrong, near", [("contrastve", "contrastive"), ("Ridge", "ridge"), ("weighted-sum", "weighted_sum")]
)
def test_an_unknown_method_is_answered_with_the_nearest_and_the_list(wrong: str, near: str) -> None:
    with pytest.raises(
        LoraclrError, match=f"no method '{wrong}': did you mean '{near}'.*known are ace, average, contrastive"
    ):
        find_method(wrong)


def test_a_name_like_no_other_is_answered_with_the_list_alone() -> None:
    with pytest.raises(LoraclrError, match="no method 'xyz': known are ace, average"):
        find_method("xyz")


@pytest.mark.parametrize("scale", [2.0**7, 2.0**-7])
def test_it_does_not_matter_which_factor_holds_the_scale(method: Method, tolerance: float, scale: float) -> None:
    """Files keep `alpha / rank` where they like: rank 128 with an alpha of 1 beside rank 32 with an alpha of 32."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    deltas = (Factors(draw(180, 128) / 128, draw(128, 170)), Factors(draw(180, 32), draw(32, 170)))
    recordings = tuple(Recording(draw(40, 170), (i,), 1.0, ((1 - i,),)) for i in range(2))
    problem = LayerProblem("lora_unet_layer", deltas, recordings, draw(180, 170))
    keeps(method, "split")
    moved = Factors(deltas[0].up * scale, deltas[0].down / scale)
    first, second = merge(method, problem), merge(method, replace(problem, deltas=(moved, deltas[1])))
    assert distance(second.factors.dense(), first.factors.dense()) < max(tolerance, 1e-8)
    directions = torch.linalg.matrix_rank(second.factors.dense())
    if (
        method.name != "paper" and (method.name, "directions") not in EXCEPTIONS
    ):  # eight steps of a full matrix from zero
        assert int(directions) == 160, "no direction of either is dropped"
