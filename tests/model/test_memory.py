"""The memory plan stays within the budget, and a refusal names a budget that works."""

from __future__ import annotations

import re

import pytest
import torch

from lib_loraclr.errors import LoraclrError
from lib_loraclr.model.memory import (
    HALF,
    LEAST_POINTS,
    LEAST_ROWS,
    MEGABYTE,
    MOST_ROWS,
    TENSORS_PER_POINT,
    free_on_card,
    plan_memory,
)
from lib_loraclr.recording.examples import Examples

#: from a merge of two on a small model to one of twelve at SD1.5's sizes
JOBS = {
    "small": {
        "columns": {"a": 320, "b": 1280},
        "recordings": 3,
        "points": 128,
        "latent_numbers": 4 * 16 * 16,
    },
    "large": {
        "columns": {f"layer {i}": 1280 for i in range(200)},
        "recordings": 13,
        "points": 544,
        "latent_numbers": 4 * 64 * 64,
    },
    "many points": {
        "columns": {"a": 320},
        "recordings": 2,
        "points": 33300,
        "latent_numbers": 4 * 128 * 128,
    },
    "no layers": {"columns": {}, "recordings": 2, "points": 256, "latent_numbers": 4 * 64 * 64},
}


@pytest.fixture(params=JOBS.values(), ids=JOBS)
def job(request) -> dict:
    return request.param


def least_budget(job: dict) -> int:
    """The budget that the refusal of 0 MB names."""
    with pytest.raises(LoraclrError, match="memory budget of 0 MB is too small") as refusal:
        plan_memory(0, **job)
    return int(re.search(r"at least (\d+) MB", str(refusal.value))[1])


def spent(plan, job: dict) -> int:
    """Bytes that the plan's rows and points take."""
    rows = plan.rows * sum(job["columns"].values()) * job["recordings"]
    points = plan.points * job["recordings"] * job["latent_numbers"] * TENSORS_PER_POINT
    return (rows + points) * HALF


@pytest.mark.parametrize("times", [1, 2, 10, 1000])
def test_the_budget_is_obeyed(job: dict, times: int) -> None:
    budget = least_budget(job) * times
    assert spent(plan_memory(budget, **job), job) <= budget * MEGABYTE


def test_a_larger_budget_never_buys_less(job: dict) -> None:
    least = least_budget(job)
    plans = [plan_memory(budget, **job) for budget in range(least, least * 40, max(1, least // 3))]
    for smaller, larger in zip(plans, plans[1:], strict=False):
        assert larger.rows >= smaller.rows
        assert larger.points >= smaller.points
    assert plans[-1] != plans[0] or not job["columns"]


def test_the_least_budget_that_a_refusal_names_works_and_less_does_not(job: dict) -> None:
    least = least_budget(job)
    plan = plan_memory(least, **job)
    assert plan.rows >= LEAST_ROWS
    assert plan.points >= min(LEAST_POINTS, job["points"])
    with pytest.raises(LoraclrError, match=f"at least {least} MB"):
        plan_memory(least - 1, **job)


def test_no_more_is_planned_than_there_is_use_for(job: dict) -> None:
    plan = plan_memory(1 << 30, **job)
    assert plan.rows == MOST_ROWS
    assert plan.points == job["points"]


def test_memory_does_not_grow_with_the_number_of_points(job: dict) -> None:
    budget = least_budget(job) * 2
    plans = [plan_memory(budget, **{**job, "points": points}) for points in (10_000, 100_000)]
    assert spent(plans[1], job) <= budget * MEGABYTE
    assert plans[0].rows == plans[1].rows


def test_twice_the_concepts_have_half_as_much_each(job: dict) -> None:
    """What a teacher takes is the same whatever the others do: rows and points are shared out among the recordings."""
    budget = least_budget(job) * 4
    one, two = (
        plan_memory(budget, **{**job, "points": 1 << 20, "recordings": times * job["recordings"]}) for times in (1, 2)
    )
    assert one.points // 2 - 1 <= two.points <= one.points // 2 + 1
    assert two.rows in (MOST_ROWS, one.rows // 2) or one.rows == MOST_ROWS


def test_what_a_point_takes_is_what_the_recordings_hold() -> None:
    """The budget counts the tensors of the size of a latent that `Examples` has."""
    latents = {"x", "target", "other"}
    assert latents <= set(Examples.__dataclass_fields__)
    others = {"teacher", "slots", "prompts", "t", "effect", "has_other"}
    assert set(Examples.__dataclass_fields__) == latents | others
    assert len(latents) == TENSORS_PER_POINT


def test_free_on_a_card_is_what_the_driver_has_and_what_torch_keeps_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"mem_get_info": (700, 1000), "memory_reserved": 250, "memory_allocated": 200}
    asked = []
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: asked.append(device) or figure)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert free_on_card(torch.device("cuda")) == free_on_card(torch.device("cuda:3")) == 750
    # torch 2.1 refuses a device without a number, which is what the WebUI has
    assert asked == [1, 1, 1, 3, 3, 3]
    assert free_on_card(torch.device("cpu")) is None
