"""The ablation and the styles: what is changed is a request that can be merged, and tables are made of what there is."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import ablation, styles
from bench.cells import Cells
from bench.world import demo_request
from lib_loraclr.solving import Procedure

FIGURES = {
    "identity": [7, 8],
    "unseen": [1, 2],
    "two": {"right": [1, 2], "swapped": [0, 2], "twice": [1, 2], "neither": [0, 2]},
    "three": {"parts": [2, 3]},
    "retention": 0.5,
    "base drift": 0.3,
    "rank": 12.0,
    "seconds": 99.0,
}


def asked(*arguments: str, full: bool = False, results: Path = Path("nowhere")) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ablation.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    parsed.full, parsed.results = full, results
    return parsed


@pytest.mark.parametrize("name", ablation.CHANGES)
def test_every_change_is_a_request_that_differs_in_something_and_can_be_made(name: str) -> None:
    request, _ = demo_request(ablation.LORAS, "default")
    request = replace(request, options={"effort": "fast"})
    changed = ablation.CHANGES[name](request)
    assert Procedure.of(changed)
    assert (changed == request) == (name == "as it is" or name in ablation.LOSSES)


def test_tables_and_the_sweep_are_made_of_the_cells_that_there_are(tmp_path: Path) -> None:
    cells = Cells("ablation", tmp_path)
    for name in ("as it is", "half the paths, renoised points"):
        cells.measured(ablation._path(name), {}, lambda: FIGURES)
    for margin in (0.5, 1.0):
        cells.measured(f"sweep/margin{margin:g}-pull0.001", {}, lambda margin=margin: {"retention": margin / 2})
    ablation.publish(cells)
    text = (tmp_path / "ablation.md").read_text("utf-8")
    assert "| as it is | 0.88 (0.53–0.98) | 0.50 (0.09–0.91) | 0.50 (0.09–0.91) / 0.00 / 0.50 | 0.67" in text
    assert "| half the paths, renoised points" in text and "| no scenes" not in text
    assert "| 0.001 | 0.250 | 0.500 |" in text
    assert "margin" in (tmp_path / "ablation-sweep.svg").read_text("utf-8")


def test_a_run_measures_what_it_is_asked_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    class Stand:
        """In place of `Bench`."""

        def __init__(self, arguments: argparse.Namespace) -> None:
            self.effort = arguments.effort

        def asked(self) -> dict[str, object]:
            return {"effort": self.effort}

        def change(self, name: str) -> dict:
            measured.append(name)
            return FIGURES

        def swept(self, margin: float, pull: float) -> dict:
            measured.append((margin, pull))
            return {"retention": 0.5}

    monkeypatch.setattr(ablation, "Bench", Stand)
    for _ in range(2):
        ablation.main(asked(results=tmp_path))
    changes = [name for name in ablation.CHANGES if name not in ablation.MORE]
    assert measured[: len(changes)] == changes
    assert len(measured) == len(changes) + len(ablation.MARGINS) * len(ablation.PULLS)
    ablation.main(asked("--no-sweep", full=True, results=tmp_path))
    assert measured[-len(ablation.CHANGES) :] == list(ablation.CHANGES), "at another effort all are measured anew"


def test_a_style_is_seen_where_pictures_are_nearer_to_the_styled_ones() -> None:
    styled, plain = [torch.tensor([[1.0, 0.1], [1.0, -0.1]])], [torch.tensor([[0.0, 1.0]])]
    pictures = torch.tensor([[0.9, 0.2], [0.1, 0.9]])
    assert styles.shown(pictures, styled, plain) == [1.0, 0.0]
    clear = torch.tensor([[0.9, 0.25]])
    assert styles.shown(pictures, styled, [*plain, clear]) == [0.0, 0.0], "it is a clear one, and not a styled one"


def test_within_a_style_a_subject_is_whose_look_is_nearest() -> None:
    looks = {"penguin": [torch.tensor([[0.0, 2.0], [0.2, 2.0]])], "fox": [torch.tensor([[1.0, 0.1], [1.0, -0.1]])]}
    assert styles.nearest(torch.tensor([[0.9, 0.2], [0.1, 0.9]]), looks) == ["fox", "penguin"]
    # by direction, as the judge's embeddings are: a look of few pictures that agree is no nearer than one that is longer
    assert styles.nearest(torch.tensor([[0.7, 0.72]]), looks) == ["penguin"]
    looks["fox"].append(torch.tensor([[0.7, 0.7]]))
    assert styles.nearest(torch.tensor([[0.7, 0.72]]), looks) == ["fox"], "in any of the ways in which it is drawn"


def test_styles_have_a_row_for_where_they_are_not_called(tmp_path: Path) -> None:
    cells = Cells("styles", tmp_path)
    told = {"style": [3, 4], "identity": [4, 4], "identity within the style": [2, 4]}
    cells.measured("style-clay/both LoRAs", {}, lambda: told)
    cells.measured(
        "style-clay/LoRACLR fast", {}, lambda: {**told, "seconds": 80.0, "not called": {**told, "style": [0, 4]}}
    )
    styles.publish(cells)
    lines = (tmp_path / "styles.md").read_text("utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| style")] == [
        "| style-clay: LoRACLR fast",
        "| style-clay: LoRACLR fast, style not called",
        "| style-clay: both LoRAs",
    ]
    assert any("0.00" in line and "not called" in line for line in lines)
    (both,) = [line.split(" | ") for line in lines if "both LoRAs" in line]
    assert [cell.split()[0] for cell in both[1:4]] == ["0.75", "1.00", "0.50"]
