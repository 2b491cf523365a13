"""The benchmarks' hosts of shapes: what nobody runs for weeks must still be a host when somebody does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import card, memory, refinement_step, sdxl
from bench.shapes import SD15, SDXL, Architecture, ShapesHost
from lib_loraclr.merge import stage_plan
from lib_loraclr.model.host import Host
from lib_loraclr.progress import Stage
from tests.small import measure_on_little


def members() -> set[str]:
    """What the protocol asks for."""
    return {name for name in (*Host.__annotations__, *vars(Host)) if not name.startswith("_")}


@pytest.mark.parametrize("architecture", [SD15, SDXL], ids=lambda architecture: architecture.name)
def test_a_host_of_shapes_has_everything_that_a_host_has(architecture: Architecture):
    assert [name for name in sorted(members()) if not hasattr(ShapesHost(architecture.small()), name)] == []


def test_time_and_memory_of_sdxl_are_told_for_every_number_of_concepts(tmp_path: Path, capsys):
    host = ShapesHost(SDXL.small(), substitute=False)
    runs = [sdxl.merge(host, tmp_path, number, budget=256) for number in (1, 2)]
    assert [run.report.rank[2] <= sdxl.RANK * run.concepts for run in runs] == [True, True]
    assert all(run.report.layers == len(host.layers()) and run.seconds(sdxl.SOLVING) > 0 for run in runs)
    rows = sdxl.table(runs, 256).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 2"]
    assert "merging the UNet" in capsys.readouterr().out


def test_memory_of_sd15_is_watched_in_every_stage(tmp_path: Path):
    host = ShapesHost(SD15.small())
    loras = [memory.random_lora(host, tmp_path / f"{i}.safetensors", rank=2, seed=i) for i in range(2)]
    report, watch = memory.measure(host, loras, 64, size=64, steps=2)
    assert report.layers == len(host.layers()) and report.rows > 0
    assert {Stage.UNET_INPUTS, Stage.UNET_LAYERS, Stage.MEASURING} <= set(watch.peaks)


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
    assert found["right"] and set(found["rank 8"]["ratios"]) == {"seconds", "mb"}


def test_the_card_script_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """The controls: a part that fails, and one that finds something."""

    def failing(device: str, small: bool) -> dict:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(
        card, "PARTS", {"one": failing, "two": lambda *_: {"right": False}, "three": lambda *_: {"right": True}}
    )
    monkeypatch.setattr("sys.argv", ["card", "--device", "cpu", "--results", str(tmp_path / "card.json")])
    assert card.main() == 1
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
