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
from lib_loraclr.solving.methods.contrastive import STEPS, ContrastiveOptions, refinement_options
from lib_loraclr.solving.methods.paper import PaperObjective, PaperOptions
from tests.solving.test_layer_problem import dense_gram, dense_target, random_problem, slow_units

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
AT_THE_OUTPUT = {"effort", "steps", "batch_size", "scenes", "contrast", "learning_rate"}
OPTIONS = [(method, item) for method in ALL.values() for item in schema(method.options)]


def another(item: Option) -> object:
    """A value that is not the default."""
    if item.choices:
        return next(choice for choice in reversed(item.choices) if choice != item.default)
    if item.type is bool:
        return not item.default
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


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_weighted_sum_is_the_dense_sum_and_average_its_share(problem: LayerProblem) -> None:
    everyone = tuple(range(len(problem.deltas)))
    total = dense_target(problem, everyone)
    assert distance(dense("weighted_sum", problem), total) < CLOSE
    assert distance(dense("average", problem), total / len(everyone)) < CLOSE


@pytest.mark.parametrize("strength", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_ridge_solves_the_dense_normal_equations(problem: LayerProblem, strength: float) -> None:
    """`ΔW (S + λ) = Σ c_i D_i G_i / e_i + λ D̄`, with the whole matrices."""
    gram, d_in = dense_gram(problem), problem.present[0].shape[1]
    pull = strength * gram.trace() / d_in
    mean = dense_target(problem, tuple(range(len(problem.deltas)))) / len(problem.deltas)
    right = pull * mean
    for recording, unit in zip(problem.recordings, slow_units(problem), strict=True):
        own = recording.importance / len(recording.inputs) / unit * recording.inputs.mT @ recording.inputs
        right = right + dense_target(problem, recording.active) @ own
    expected = torch.linalg.solve(gram + pull * torch.eye(d_in, dtype=torch.float64), right.mT).mT
    # the ridge of 1e-4 leaves a condition number of 1e5
    assert distance(dense("ridge", problem, ridge=strength), expected) < 1e-8


def with_strengths(*strengths: float) -> LayerProblem:
    """Two concepts of rank 16 on the same inputs but for a small part of their own, so that the merge must give way: equal rows,
    unequal effects."""
    generator = torch.Generator().manual_seed(5)
    rows, d_out, d_in = 64, 48, 40

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    deltas = tuple(Factors(draw(d_out, 16) * strength, draw(16, d_in)) for strength in strengths)
    shared = draw(rows, d_in)
    recordings = tuple(
        Recording(shared + 0.7 * draw(rows, d_in), (i,), 1.0, ((1 - i,),)) for i in range(len(strengths))
    )
    return LayerProblem("lora_unet_layer", deltas, recordings)


def errors_of(problem: LayerProblem, delta: Tensor) -> list[float]:
    """Of each concept on its own rows, relative to its own effect; 1 is where nothing of it is left."""
    results = []
    for recording in problem.recordings:
        wanted = recording.inputs @ dense_target(problem, recording.active).mT
        results.append(distance(recording.inputs @ delta.mT, wanted))
    return results


@pytest.mark.parametrize("weak", [0.1, 0.05])
@pytest.mark.parametrize("name", ["ridge", "contrastive"])
def test_a_weak_concept_is_kept_beside_a_strong_one(monkeypatch: pytest.MonkeyPatch, name: str, weak: float) -> None:
    """Effects are squared: a tenth of the strength would have a hundredth of the weight, were there one unit for all."""
    problem = with_strengths(1.0, weak)
    effects = problem.units()
    assert max(errors_of(problem, dense(name, problem))) < 1
    monkeypatch.setattr(LayerProblem, "units", lambda self: [effects[0]] * len(self.recordings))
    assert errors_of(problem, dense(name, problem))[1] > 2, "control: in one unit for all nothing of it is left"


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


def test_ridge_says_how_it_solved() -> None:
    notes = [merge("ridge", PROBLEMS[name]).notes for name in ("usual", "fewer rows than inputs")]
    assert [note["dual"] for note in notes] == [False, True]
    assert all(note["repairs"] == 0 and note["ridge"] > 0 for note in notes)


def test_ridge_keeps_concepts_whose_inputs_have_nothing_in_common() -> None:
    """Each keeps its effect on its own inputs, where the plain sum adds the others' to it."""
    problem = random_problem(ranks=(2, 2), size=(12, 20), background=False)
    halves = [torch.zeros(20, dtype=torch.float64).index_fill(0, half, 1.0) for half in torch.arange(20).chunk(2)]
    own = tuple(
        Recording(recording.inputs * half, recording.active)
        for recording, half in zip(problem.recordings, halves, strict=True)
    )
    problem = replace(problem, recordings=own)
    for recording in own:
        wanted = recording.inputs @ dense_target(problem, recording.active).mT
        assert distance(recording.inputs @ dense("ridge", problem, ridge=1e-10).mT, wanted) < 1e-6
        assert distance(recording.inputs @ dense("weighted_sum", problem).mT, wanted) > 0.1


def test_contrastive_without_steps_is_the_closed_form_at_its_start() -> None:
    problem = random_problem()
    start = dense("ridge", problem, ridge=0.05)
    assert distance(dense("contrastive", problem, ridge=0.05, layer_steps=0), start) < CLOSE
    assert distance(dense("contrastive", problem, ridge=0.05), start) > 1e-3


def test_contrastive_without_its_negative_term_stays_where_the_closed_form_is_already_right() -> None:
    """Fewer rows than inputs: every concept can be had at once, so that the positive term is zero at the start."""
    problem = PROBLEMS["fewer rows than inputs"]
    start = dense("ridge", problem, ridge=1e-9)
    assert distance(dense("contrastive", problem, ridge=1e-9, negative=0.0), start) < 1e-6
    assert distance(dense("contrastive", problem, ridge=1e-9, margin=2.0), start) > 1e-3


def test_a_strong_lambda_delta_holds_contrastive_at_its_start() -> None:
    problem = random_problem()
    start = dense("ridge", problem)
    moved = [
        distance(dense("contrastive", problem, lambda_delta=pull, layer_steps=50), start) for pull in (0.001, 10.0)
    ]
    assert moved[1] < 0.1 * moved[0]


def test_the_negative_term_moves_rows_away_from_the_nearest_other_concept() -> None:
    problem = random_problem()
    active = [
        merge("contrastive", problem, negative=weight, layer_steps=100).notes["active_hinges"] for weight in (0, 10)
    ]
    assert active[1] < active[0]


def test_efforts_say_what_is_done_at_the_output() -> None:
    assert refinement_options(ContrastiveOptions(effort="layers", steps=10), 4) is None
    assert ContrastiveOptions().effort == "balanced"
    for effort in ("fast", "balanced", "thorough"):
        counts = (1, 2, 3, 4, 12)
        steps = [refinement_options(ContrastiveOptions(effort=effort), count).steps for count in counts]
        assert steps == [STEPS[effort] * counted for counted in (1, 3, 3, 4, 12)], (
            "two have to be told apart as three have"
        )
        few = refinement_options(ContrastiveOptions(effort=effort), 2)
        assert few.terms == ContrastiveOptions().terms
    assert STEPS["thorough"] > STEPS["balanced"] > STEPS["fast"] > STEPS["layers"] == 0
    assert refinement_options(ContrastiveOptions(steps=7), 12).steps == 7
    assert all(
        METHODS[name].refinement(METHODS[name].options(), 4) is None for name in METHODS if name != "contrastive"
    )


def published_loss(problem: LayerProblem, delta: Tensor, options: PaperOptions) -> tuple[float, list[float]]:
    """The second way: eq. 3 to 6 as they stand, with the whole outputs `Y`; and the hinges."""
    concepts = [recording for recording in problem.recordings if recording.active]
    wanted = [r.inputs @ (problem.weight + dense_target(problem, r.active)).mT for r in concepts]
    merged = [r.inputs @ (problem.weight + delta).mT for r in concepts]
    total, hinges = 0.0, []
    for i, own in enumerate(wanted):
        positive = float((own - merged[i]).norm())
        nearest = min(float((own - other).norm()) for j, other in enumerate(merged) if j != i)
        hinges.append(max(0.0, options.margin - nearest))
        total += positive**2 + options.mse * positive**2 / own.numel() + hinges[-1] ** 2
    return total / len(concepts) + options.lambda_delta * float(delta.norm()), hinges


def few_rows(problem: LayerProblem) -> LayerProblem:
    """As many in each recording."""
    return replace(problem, recordings=tuple(replace(r, inputs=r.inputs[:4]) for r in problem.recordings))


def test_the_papers_loss_is_the_published_formula() -> None:
    problem = few_rows(random_problem(scale=0.05, rows=4))
    delta = dense_target(problem, (0,)) * 0.5
    far, _ = published_loss(problem, delta, PaperOptions(margin=0.0))
    # a margin between the nearest others: some hinges act, some do not
    _, hinges = published_loss(problem, delta, PaperOptions(margin=1e6))
    margin = 1e6 - sorted(hinges)[len(hinges) // 2]
    options = PaperOptions(margin=margin + 1e-3, lambda_delta=0.01, mse=0.1)
    expected, hinges = published_loss(problem, delta, options)
    assert min(hinges) == 0 < max(hinges)
    loss, acting = PaperObjective(problem, options)(delta)
    assert float(loss) == pytest.approx(expected, rel=CLOSE)
    assert acting == sum(h > 0 for h in hinges) / len(hinges)
    assert expected != pytest.approx(far, rel=CLOSE), "control: the hinges are in it"
    without = PaperObjective(replace(problem, weight=torch.zeros_like(problem.weight)), options)(delta)[0]
    assert float(without) != pytest.approx(expected, rel=CLOSE), "control: so are the base outputs"


def test_the_papers_result_is_the_best_iterate_by_adamw() -> None:
    """Steps far too long: the last iterate is worse than the first."""
    problem = few_rows(random_problem(scale=0.05, rows=4))
    options = PaperOptions(iterations=6, learning_rate=0.5)
    delta = torch.zeros_like(problem.weight, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.5, weight_decay=1e-4)
    losses, points = [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss, _ = PaperObjective(problem, options)(delta)
        losses.append(float(loss.detach()))
        points.append(delta.detach().clone())
        loss.backward()
        optimizer.step()
    best = losses.index(min(losses))
    assert best < 5, "control"
    found = dense("paper", problem, iterations=6, learning_rate=0.5)
    assert torch.allclose(found, points[best], rtol=1e-6, atol=1e-9)


def test_the_papers_method_reaches_a_lora_if_it_is_given_the_steps() -> None:
    problem = random_problem(ranks=(2,), background=False)
    wanted = problem.deltas[0].dense()
    options = {"learning_rate": 0.01, "lambda_delta": 0.0}
    assert distance(dense("paper", problem, iterations=2000, **options), wanted) < 0.01
    assert distance(dense("paper", problem, iterations=20, **options), wanted) > 0.5
