"""`loraclr bench-here`: what it asks for, and what it prints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from runs import Run

import lib_loraclr.doors.cli.bench_here as command
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge import Made, comparison
from lib_loraclr.model import Factors
from lib_loraclr.refining import Retention
from lib_loraclr.solving import METHODS, all_baselines

RETENTIONS = {"average": (0.2, 0.1), "ties": (0.1, 0.3), "ridge": (0.5, 0.7), "dare": (-0.2, None)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, loaded: DiffusersHost) -> list[str]:
    """Merges that take no time, and which were asked for."""
    methods: list[str] = []

    class Stand:
        """In place of `Several`."""

        def __init__(self, request, host, progress) -> None:
            self.request, self.host, self.progress = request, host, progress

        def merge(self, method: str, options: dict) -> Made:
            methods.append(method)
            return Made(method, {method: Factors(torch.zeros(1, 1), torch.zeros(1, 1))}, 8.0, {})

        def retention(self, factors: dict) -> Retention:
            [method] = factors
            return Retention(RETENTIONS.get(method, (0.0, 0.0)), 0.25)

        def finished(self, made: Made, retention: Retention) -> str:
            return made.method

    def drawn(merge: str, *_: object) -> SimpleNamespace:
        return SimpleNamespace(sheet=Image.new("RGB", (2, 2)))

    monkeypatch.setattr(command, "Several", Stand)
    monkeypatch.setattr(comparison, "draw_pictures", drawn)
    return methods


LORAS = ("fox.safetensors", "cat.safetensors")


def test_methods_are_shown_side_by_side_the_best_first(run: Run, folder: Path, asked: list[str]) -> None:
    result = run("bench-here", *LORAS, "--methods", "average", "ties", "ridge", "dare")
    assert (result.code, asked) == (0, ["average", "ties", "ridge", "dare"])
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["method", "ridge", "ties", "average", "dare"]
    assert lines[1].split()[1:7] == ["0.500", "0.700", "0.600", "0.500", "0.250", "8"]
    assert "n/a" in lines[4]


def test_without_a_name_all_methods_are_tried(run: Run, folder: Path, asked: list[str]) -> None:
    assert run("bench-here", *LORAS).code == 0
    assert asked == [*METHODS, *all_baselines()]


def test_pictures_of_the_best_three_are_drawn_into_a_new_folder(run: Run, folder: Path, asked: list[str]) -> None:
    result = run("bench-here", *LORAS, "--methods", *RETENTIONS, "--pictures", "compared")
    assert result.code == 0
    assert {path.name for path in Path("compared").iterdir()} == {"ridge.png", "ties.png", "average.png"}
    again = run("bench-here", *LORAS, "--methods", "ridge", "--pictures", "compared")
    assert again.code == 2 and "compared exists: name a new folder with --pictures." in again.err


def test_an_unknown_method_is_refused_before_anything_is_merged(run: Run, folder: Path, asked: list[str]) -> None:
    result = run("bench-here", *LORAS, "--methods", "average", "tie")
    assert result.code == 2 and "did you mean 'ties'" in result.err and asked == []
