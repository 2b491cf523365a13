"""How the benchmark keeps, adds up and shows what it measured."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.cells import RESULTS, Cells, commit_of
from bench.clock import Clock, Span, timed
from bench.plots import Axis, line_plot
from bench.tables import markdown, mean_interval, share, wilson
from lib_loraclr.progress import PlannedStage, Stage, Work


def test_a_cell_is_measured_once_and_again_where_it_is_asked_otherwise(tmp_path: Path) -> None:
    cells, calls = Cells("part", tmp_path), []

    def measure() -> dict:
        calls.append(1)
        return {"figure": len(calls)}

    first = [cells.measured("n2/seed0/row", {"pictures": 8}, measure) for _ in range(2)]
    assert first == [{"figure": 1}] * 2
    assert cells.measured("n2/seed0/row", {"pictures": 16}, measure) == {"figure": 2}
    assert Cells("part", tmp_path).known("n2/seed0/row", {"pictures": 16}) == {"figure": 2}, "another run goes on there"
    assert cells.known("n2/seed0/row", {"pictures": 8}) is None
    assert list(cells) == ["n2/seed0/row"]
    assert set(cells.took("n2/seed0/row")) == {"wall", "processor"}


def test_a_tuple_that_was_asked_is_the_list_that_was_kept(tmp_path: Path) -> None:
    cells = Cells("part", tmp_path)
    cells.measured("row", {"scales": (0.3, 1.0)}, dict)
    assert cells.known("row", {"scales": (0.3, 1.0)}) == {}


def test_a_cell_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict:
        raise RuntimeError("no memory")

    cells = Cells("part", tmp_path)
    with pytest.raises(RuntimeError):
        cells.measured("row", {}, fail)
    assert list(cells) == [] and not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(TypeError):
        cells.measured("row", {}, lambda: {"figure": object()})
    assert list(cells) == [], "what cannot be written is not written by half"


def git(folder: Path, *arguments: str) -> str:
    """What git says, with an author of its own, in a folder that may be anybody's."""
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_cell_knows_the_commit_and_whether_the_code_was_of_it(tmp_path: Path) -> None:
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)

    def told() -> str | None:
        commit_of.cache_clear()
        return commit_of(tmp_path, apart_from=results)

    assert told() is None, "no checkout"
    git(tmp_path, "init", "-q")
    assert told() is None, "a checkout without a commit"
    code = tmp_path / "code.py"
    code.write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    (results / "cell.json").write_text("{}")
    assert told() == commit, "what a run writes is no change of the code"
    code.write_text("two")
    assert told() == f"{commit}+"
    git(tmp_path, "checkout", "-q", "code.py")
    (tmp_path / "new.py").write_text("new")
    assert told() == f"{commit}+", "new code is not of the commit either"
    commit_of.cache_clear()
    inside = tmp_path / "bench"
    assert commit_of(inside, apart_from=results) is None, "code inside another project's checkout is not of its commits"


def test_a_cell_says_what_it_was_measured_with(tmp_path: Path) -> None:
    cells = Cells("part", tmp_path)
    cells.measured("row", {}, dict)
    kept = json.loads(cells.path("row").read_text("utf-8"))["with"]
    assert set(kept) == {"version", "commit", "torch", "threads", "cores"}
    assert kept["commit"] == commit_of(RESULTS.parents[1], apart_from=RESULTS)


def test_the_interval_of_a_share_holds_what_would_not_be_rejected() -> None:
    """Wilson's bounds are where the normal score of the observed count is 1.96, by its definition."""
    for successes, count in ((0, 8), (3, 8), (40, 64)):
        for bound in wilson(successes, count):
            if 1e-9 < bound < 1 - 1e-9:
                score = (successes / count - bound) / math.sqrt(bound * (1 - bound) / count)
                assert abs(score) == pytest.approx(1.96)
    assert wilson(0, 8)[0] == pytest.approx(0)


def test_several_seeds_have_the_interval_of_their_mean() -> None:
    mean, lower, upper = mean_interval([0.2, 0.4, 0.6])
    # standard error 0.2 / sqrt(3), times 4.30 for two degrees of freedom
    assert (mean, upper - mean, mean - lower) == pytest.approx((0.4, 0.2 / 3**0.5 * 4.30, 0.2 / 3**0.5 * 4.30))
    assert share([[2, 4]]) == "0.50 (0.15–0.85)"
    assert share([[2, 4], [2, 4], [0, 0]]) == "0.50 (0.50–0.50)"
    assert share([]) == share([[0, 0]]) == ""
    assert markdown(("", "a"), [["row", 1]]) == "| | a |\n|---|---|\n| row | 1 |".replace("| |", "|  |")


def test_points_stand_where_their_values_are_and_names_are_escaped() -> None:
    axis = Axis("N", logarithmic=True)
    plot = line_plot(
        "a <b>", axis, Axis("share", bounds=(0.0, 1.0)), {"one & two": [(2, 0.0), (4, 0.5), (8, 1.0)], "empty one": []}
    )
    places = [tuple(map(float, found)) for found in re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', plot)]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2), "4 is half-way from 2 to 8 where steps are factors"
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y2
    assert "a &lt;b&gt;" in plot and "one &amp; two" in plot and "empty one" not in plot
    with pytest.raises(ValueError, match="'empty' has no points"):
        line_plot("empty", axis, axis, {"a": []})


def test_the_clock_adds_up_stages_that_come_twice_and_knows_their_pace() -> None:
    clock = Clock()
    clock.plan([PlannedStage(Stage.RECORDING, 4, Work.EVALUATION, 8.0)])
    for _ in range(2):
        clock.start(Stage.RECORDING, 2)
        clock.advance()
        clock.start(Stage.UNET_LAYERS, 1)
    clock.finish()
    assert set(clock.spans) == {Stage.RECORDING, Stage.UNET_LAYERS} and clock.stage is None
    assert clock.total([Stage.RECORDING]).wall == clock.spans[Stage.RECORDING].wall > 0
    assert clock.total().wall == pytest.approx(sum(span.wall for span in clock.spans.values()))
    assert clock.seconds_per_unit() == {Work.EVALUATION: clock.spans[Stage.RECORDING].wall / 8}
    assert Span(1, 2, 3) + Span(1, 1, 5) == Span(2, 3, 5)


def test_what_was_timed_is_given_back() -> None:
    result, span = timed(lambda: sum(range(100_000)))
    assert result == 4999950000 and span.processor > 0


def test_results_that_are_in_the_repository_can_be_read() -> None:
    for part in ("quality", "speed", "memory", "ablation", "styles"):
        for path in Cells(part):
            assert json.dumps(Cells(part).known(path))
