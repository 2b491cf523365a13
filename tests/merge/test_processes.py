"""A merge that two processes do together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: gradients of a step are summed in another order: rounding of 1e-7 of each layer was seen after four steps
REFINED = 1e-5


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict:
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    command = [sys.executable, "-m", "tests.merge.merges_together", str(tmp_path_factory.mktemp("together"))]
    quiet = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_two_processes_merge_layers_to_the_same_bits_as_one(told: dict) -> None:
    """Recording, solving, measuring and drawing are divided in whole pieces, and so not even rounding differs."""
    assert told["layers"] == [["layers"], ["layers", "layers"]]
    for rank in (0, 1):
        assert told["layers differ"][rank] == {"layer": 0.0, "retention": 0.0, "pictures": 0.0}


def test_two_processes_refine_to_the_same_but_for_the_order_of_sums(told: dict) -> None:
    one, other = told["refined differ"]
    assert one == other, "both have the same result"
    assert 0 < one["layer"] < REFINED
    assert one["retention"] < REFINED


def test_an_error_in_one_is_that_of_all(told: dict) -> None:
    assert told["fails"] == ["LoraclrError: The second one has had enough: give it a rest."] * 2
    assert told["interrupts"] == ["Interrupted: "] * 2


def test_a_process_that_is_killed_is_noticed(told: dict) -> None:
    first, second = told["dies"]
    assert second == "killed by 9"
    assert first.startswith("LoraclrError: Another process of the merge is gone (")
