"""The benchmark's parts: what nobody runs for weeks must still run when somebody does."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

from bench import card, memory, refinement_step
from bench.__main__ import PARTS
from bench.__main__ import main as bench_main
from bench.cells import Cells
from bench.shapes import SD15, SDXL, Architecture, ShapesHost
from lib_loraclr.merge import Pace, stage_plan, usual_pace
from lib_loraclr.merge import pace as merge_pace
from lib_loraclr.model.host import Host
from lib_loraclr.progress import Stage
from tests.small import measure_on_little


def members() -> set[str]:
    """What the protocol asks for."""
    return {name for name in (*Host.__annotations__, *vars(Host)) if not name.startswith("_")}


@pytest.mark.parametrize("architecture", [SD15, SDXL], ids=lambda architecture: architecture.name)
def test_a_host_of_shapes_has_everything_that_a_host_has(architecture: Architecture):
    assert [name for name in sorted(members()) if not hasattr(ShapesHost(architecture.small()), name)] == []


@pytest.mark.parametrize("architecture", [SD15, SDXL], ids=lambda architecture: architecture.name)
def test_memory_and_time_of_every_stage_are_told(architecture: Architecture, tmp_path: Path):
    host = ShapesHost(architecture.small(), substitute=False)
    found = {f"{architecture.name}/n{number}": memory.merge(host, tmp_path, number, budget=256) for number in (1, 2)}
    for path, figures in found.items():
        stages = figures["stages"]
        assert figures["layers"] == len(host.layers()) and figures["rows"] > 0
        assert {stage.value for stage in (*memory.RECORDING, *memory.SOLVING)} <= set(stages)
        assert all(stages[stage.value]["seconds"] > 0 for stage in memory.SOLVING)
        assert figures["rank"] <= memory.RANK * int(path[-1])
    cells = Cells("memory", tmp_path)
    for path, figures in found.items():
        cells.measured(path, {}, lambda figures=figures: figures)
    memory.publish(cells)
    lines = (tmp_path / "memory.md").read_text("utf-8").splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith(f"| {architecture.name}")] == ["1", "2"]


def test_features_that_the_authors_keep_are_counted_from_the_shapes():
    """Beside a slow second way for one layer: to_q of the first block reads every position of 64 × 64 latents."""
    host = ShapesHost(SD15)
    rows = host.rows_entering((64, 64))
    assert rows["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"] == 64 * 64
    assert rows["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"] == 77
    assert set(rows) == set(host.layers())
    # docs say 5.6 GB for the attention alone to 14 GB with everything, for each concept
    assert 5_000 < memory.authors_features(host) < 14_500


@pytest.mark.parametrize("part", PARTS)
def test_every_part_answers(part: str, capsys):
    module = importlib.import_module(f"bench.{part}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.__doc__ and callable(module.main)
    with pytest.raises(SystemExit):
        bench_main([part, "--help"])
    assert "usage" in capsys.readouterr().out


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    monkeypatch.setattr(stage_plan, "STOP_STEPS", 2)


@pytest.mark.parametrize("part", [part for part in card.PARTS if part != "steps"])
def test_the_card_script_runs_on_a_cpu(part: str, little: None) -> None:
    """So that it is known to work when the card comes."""
    found = card.run(part, "cpu", small=True)
    assert found["right"], found
    if part == "sd15":
        assert (
            found["expected_seconds"]["12 concepts, balanced"] > found["expected_seconds"]["2 concepts, balanced"] > 0
        )
        assert found["seconds"][Stage.REFINING.value] > 0


def test_a_step_is_the_same_with_changed_weights_and_with_branches() -> None:
    found = refinement_step.compare_steps("cpu", small=True)
    ratios = found["rank 8"]["ratios"]
    assert found["right"] and set(ratios) == {"changed weights", "branches where cheaper"}
    assert all(set(own) == {"seconds", "mb", "operations"} for own in ratios.values())
    assert all(own["operations"] < 0.7 for own in ratios.values()), "however slow or fast: there is less to ask for"


def asked(results: Path, *parts: str, small: bool = True, keep_pace: bool = False) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", small=small, parts=list(parts), results=results, keep_pace=keep_pace)


def test_what_a_merge_took_becomes_what_is_expected_unless_something_was_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = tmp_path / "paces.json"
    seen.write_text("{}")
    monkeypatch.setattr(merge_pace, "SEEN", seen)
    took = {"right": True, "pace": {"evaluation": 1.5, "backward": 3.0, "layer": 0.1}}
    monkeypatch.setattr(card, "PARTS", {"sd15": lambda *_: took, "wrong": lambda *_: {"right": False}})
    with pytest.raises(SystemExit, match="leave --small out"):
        card.main(asked(tmp_path, "sd15", keep_pace=True))
    with pytest.raises(SystemExit, match="1"):
        card.main(asked(tmp_path, "sd15", "wrong", small=False, keep_pace=True))
    card.main(asked(tmp_path, "sd15", small=False))
    assert seen.read_text() == "{}"
    card.main(asked(tmp_path, "sd15", small=False, keep_pace=True))
    assert usual_pace("cpu") == Pace(1.5, 3.0, 0.1)
    assert "the shapes of SD1.5" in seen.read_text()


def test_the_card_script_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """The controls: a part that fails, and one that finds something."""

    def failing(device: str, small: bool) -> dict:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(
        card, "PARTS", {"one": failing, "two": lambda *_: {"right": False}, "three": lambda *_: {"right": True}}
    )
    with pytest.raises(SystemExit, match="1"):
        card.main(asked(tmp_path, "one", "two", "three"))
    assert "not right: one, two" in capsys.readouterr().out
    kept = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert kept["one"]["error"] == "RuntimeError: no such kernel" and kept["three"]["right"]


def test_what_a_merge_left_behind_is_found(host: Host) -> None:
    """The control of `weights restored`: a hook, and a weight that was written."""
    layers = host.layers()
    before, layer = card.fingerprint(host), next(iter(layers.values()))
    handle = layer.module.register_forward_hook(lambda *_: None)
    assert card.fingerprint(host) != before
    handle.remove()
    assert card.fingerprint(host) == before
    saved = layer.weight.detach().clone()
    layer.weight.data.view(-1)[0] += 1e-6
    assert card.fingerprint(host) != before
    layer.weight.data.copy_(saved)
    assert card.fingerprint(host) == before
