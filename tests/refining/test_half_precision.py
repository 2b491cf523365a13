"""A refinement of a model in half precision, as on a graphics card: its copies of the factors follow what is learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_loraclr.files import Kept
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge.needs import memory_needs
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.path_plan import PathPlan
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining import refinement
from lib_loraclr.refining.refinement import Refined, refine
from lib_loraclr.refining.trained import TrainedFactors
from lib_loraclr.request.phrases import Part
from lib_loraclr.solving.objective import RefinementOptions, Terms
from tests.small import PROMPTS, concept, examples_of, predictor_of, request

OPTIONS = RefinementOptions(Terms(), steps=4, batch_size=2, scene_rows=2, learning_rate=2e-2)


@pytest.fixture(scope="module")
def lesson(demo: Path) -> tuple[Predictor, list[Examples]]:
    host = load(demo / "emoji-sd1.safetensors", device="cpu", dtype=torch.bfloat16)
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    plan = PathPlan(Part.LEARN, seed=0, paths=1, steps=2, partners=True)
    return predictor, examples_of(predictor, teachers, plan)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[TrainedFactors]:
    """What is trained, with copies, as a card has them."""
    found: list[TrainedFactors] = []

    def with_copies(start: Mapping[str, Factors], host: object) -> TrainedFactors:
        found.append(TrainedFactors(start, host, copies=True))
        return found[-1]

    monkeypatch.setattr(refinement, "TrainedFactors", with_copies)
    return found


class Memory:
    """Keeps the states of a refinement, and can end it after one of them."""

    def __init__(self, end_after: int = 0) -> None:
        self.kept: Kept | None = None
        self._end_after, self._times = end_after, 0

    def find(self) -> Kept | None:
        return self.kept

    def keep(
        self, state: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, object]]], *, now: bool = False
    ) -> None:
        tensors, said = state()
        self.kept = Kept({name: tensor.detach().clone() for name, tensor in tensors.items()}, said)
        self._times += 1
        if self._times == self._end_after:
            raise KeyboardInterrupt


def refined(lesson: tuple[Predictor, list[Examples]], keeper: Memory | None = None) -> Refined:
    predictor, examples = lesson
    start = {key: Factors(0.2 * f.up, f.down) for key, f in predictor.deltas[0].items()}
    return refine(predictor, start, examples, examples, OPTIONS, seed=0, keeper=keeper)


def test_the_model_runs_with_what_was_learnt(
    lesson: tuple[Predictor, list[Examples]], made: list[TrainedFactors]
) -> None:
    result = refined(lesson)
    [trained] = made
    begun = TrainedFactors({key: Factors(0.2 * f.up, f.down) for key, f in lesson[0].deltas[0].items()}, lesson[0].host)
    assert result.steps == 4 and float((trained.values - begun.values).norm()) > 1e-2 * float(begun.values.norm())
    for key, own in trained.factors.items():
        assert trained.applied[key].up.dtype == torch.bfloat16
        assert torch.equal(trained.applied[key].up, own.up.bfloat16())
        assert torch.equal(trained.applied[key].down, own.down.bfloat16())
    assert not trained.gradients.any()


def test_it_learns_what_it_learns_in_fp32(
    lesson: tuple[Predictor, list[Examples]], made: list[TrainedFactors], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients, or with those of other factors than it has, it would go elsewhere."""
    refined(lesson)
    monkeypatch.setattr(
        refinement, "TrainedFactors", lambda start, host: made.append(TrainedFactors(start, host)) or made[-1]
    )
    refined(lesson)
    copies, plain = made
    begun = TrainedFactors({key: Factors(0.2 * f.up, f.down) for key, f in lesson[0].deltas[0].items()}, lesson[0].host)
    moved = {key: f.dense() - begun.factors[key].dense() for key, f in plain.factors.items()}
    apart = {key: f.dense() - plain.factors[key].dense() for key, f in copies.factors.items()}
    size, error = (sum(float(d.square().sum()) for d in way.values()) ** 0.5 for way in (moved, apart))
    assert error < 0.3 * size


def test_one_that_was_ended_goes_on_with_what_it_had_learnt(
    lesson: tuple[Predictor, list[Examples]], made: list[TrainedFactors]
) -> None:
    expected = refined(lesson)
    memory = Memory(end_after=3)
    with pytest.raises(KeyboardInterrupt):
        refined(lesson, memory)
    found = refined(lesson, memory)
    assert memory.kept.said["made"] > 0 and found.steps == expected.steps == 4
    for key, own in expected.factors.items():
        assert torch.equal(found.factors[key].up, own.up) and torch.equal(found.factors[key].down, own.down)


def test_what_a_card_takes_has_room_for_copies_in_half_precision(demo: Path) -> None:
    asked = request(demo, "fox-face", "pizza")

    def needed(dtype: torch.dtype, *, refines: bool) -> float:
        host = load(demo / "emoji-sd1.safetensors", device="cpu", dtype=dtype)
        inputs = load_inputs(asked.concepts, host)
        host.device = torch.device("cuda")  # nothing is put there
        return memory_needs(asked, inputs, host, refines=refines).device

    full, half = needed(torch.float32, refines=True), needed(torch.bfloat16, refines=True)
    deltas = [given.deltas for given in load_inputs(asked.concepts, load(demo / "emoji-sd1.safetensors", device="cpu"))]
    factors = sum(4 * (f.up.numel() + f.down.numel()) for own in deltas for f in own.values())
    assert half - full == pytest.approx(factors / 2**20, rel=0.05)
    assert needed(torch.float32, refines=False) < full
