"""The quality part: what is told of pictures, and that a test bed merges as the product does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from bench import quality
from bench.bed import Bed
from bench.cells import Cells
from bench.iterated import IterIS, RegMeanPlusPlus, blocks, iteris
from bench.judge import Judge
from bench.protocol import COLOURS, Jury, Sizes, added, ground_colour, judged, kind, told
from bench.rows import ALONE, BASE, ROWS, SCALES, Given
from bench.world import Sprite, demo_entries, demo_names, demo_request
from lib_loraclr.model.host import Host
from lib_loraclr.progress import Stage
from lib_loraclr.request import RecordingOptions
from lib_loraclr.solving import Procedure
from tests.small import measure_on_little
from tests.solving.test_layer_problem import dense_target, random_problem
from tests.solving.test_methods import distance

FOX, PENGUIN, PIZZA = (Sprite(name, name) for name in ("fox face", "penguin", "pizza"))


def test_no_pictures_are_none_of_how_many(host: Host) -> None:
    sizes = Sizes(one=0, unseen=0, two=0, regions=0, three=0)
    figures = judged(Jury(host, Judge(), [FOX, PENGUIN], sizes), [torch.empty(0, 192)] * 2)
    assert figures["identity"] == figures["unseen"] == figures["background"] == [0, 0]
    assert figures["weakest"] is None and figures["cosine"] is None and "alignment" not in figures
    nothing = {"parts": [0, 0], "right": [0, 0], "swapped": [0, 0], "twice": [0, 0], "neither": [0, 0], "who": []}
    assert all(figures[name] == nothing for name in ("two", "three", "regions"))


@pytest.mark.parametrize(
    "seen, expected",
    [
        (("fox face", "penguin"), "right"),
        (("penguin", "fox face"), "swapped"),
        (("fox face", "fox face"), "twice"),
        (("penguin", "penguin"), "twice"),
        (("pizza", "pizza"), "neither"),
        (("fox face", "pizza"), "neither"),
    ],
)
def test_a_picture_with_two_is_told_in_one_of_four_words(seen: tuple[str, str], expected: str) -> None:
    assert kind(("fox face", "penguin"), seen) == expected


def test_parts_and_pictures_are_counted() -> None:
    found = told(
        [(FOX, PENGUIN), (PENGUIN, FOX), (FOX, PIZZA)], [("fox face", "penguin"), ("fox face",) * 2, ("x", "pizza")]
    )
    assert found.pop("who") == [[1, 1, 1], [0, 3, 0]], (
        "on the left the first, the second, nobody; on the right the second"
    )
    assert found == {"parts": [4, 6], "right": [1, 3], "swapped": [0, 3], "twice": [1, 3], "neither": [1, 3]}
    assert told([], [])["right"] == [0, 0]
    assert added([[1, 2], [3, 4]]) == [4, 6]


@pytest.mark.parametrize("colour", COLOURS)
def test_the_background_is_what_the_border_has(colour: str) -> None:
    picture = Image.new("RGB", (128, 128), tuple(value ^ 6 for value in COLOURS[colour]))
    ImageDraw.Draw(picture).ellipse((20, 20, 128, 108), fill="#00ffff")
    assert ground_colour(picture) == colour


def test_every_row_is_a_method_with_options_that_it_takes() -> None:
    request, _ = demo_request(demo_names(2), "default")
    for row in ROWS.values():
        options = {**row.options, **({"scale": SCALES[0]} if row.scales else {})}
        assert Procedure.of(replace(request, method=row.method, options=options))
        assert row.origin
    assert {len(names) for name, names in quality.SETS.items() if name.startswith("n")} == {2, 4, 8, 12}
    entries = demo_entries()
    assert len({entries[name]["class"] for name in quality.SETS["alike"]}) == 1
    assert len({*quality.SETS["n4"], *quality.SETS["others"]}) == 8


@pytest.fixture(scope="module")
def bed(host: Host) -> Iterator[Bed]:
    """Two of the demo's, recorded once."""
    request, _ = demo_request(("fox-face", "pizza"), "default")
    recording = RecordingOptions(paths=1, steps=3, height=64, width=64)
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        patch.setattr("bench.iterated.ITERATIONS", 2)
        yield Bed(replace(request, recording=recording, memory_mb=64), host)


def test_a_scale_is_chosen_by_retention(bed: Bed) -> None:
    row = replace(ROWS["TIES"], scales=(0.0, 1.0))
    made, _, chosen = row.made(bed)
    assert chosen["scale"] == max(chosen["retention by scale"], key=chosen["retention by scale"].get)
    assert chosen["retention by scale"][0.0] == pytest.approx(0.0, abs=1e-3), "of nothing nothing is kept"
    assert len(made.factors) == len(bed.inputs[0].deltas)


def test_what_was_recorded_for_one_merge_counts_for_the_others_too(bed: Bed) -> None:
    steps = {"effort": "fast", "steps": 1, "batch_size": 2, "scenes": 0}
    spans = [bed.timed("contrastive", steps)[1] for _ in range(2)]
    for stage in (Stage.RECORDING, Stage.HOLDING_BACK):
        assert spans[0][stage] == spans[1][stage] and spans[1][stage].wall > 0
    assert spans[0][Stage.REFINING] != spans[1][Stage.REFINING], "control: that is done anew"
    layers, blind = bed.timed("ridge", {})[1], bed.timed("average", {})[1]
    assert Stage.RECORDING in layers and Stage.HOLDING_BACK not in layers and Stage.RECORDING not in blind


@pytest.mark.parametrize("stages", [RegMeanPlusPlus, IterIS])
def test_iterated_merges_differ_from_regmean_and_keep_every_layer(bed: Bed, stages: type) -> None:
    plain = bed.merge("regmean", {}, rank="full")
    made = bed.merge("regmean", {}, rank="full", kind=stages)
    assert made.factors.keys() == plain.factors.keys()
    key = next(key for key in reversed(plain.factors) if "up_blocks" in key)
    assert distance(made.factors[key].dense(), plain.factors[key].dense()) > 1e-3
    assert all(own.up.isfinite().all() and own.down.isfinite().all() for own in made.factors.values())


def test_blocks_come_in_the_order_in_which_a_model_runs_them() -> None:
    keys = [
        "lora_unet_up_blocks_1_x",
        "lora_unet_mid_block_x",
        "lora_unet_down_blocks_10_x",
        "lora_unet_down_blocks_2_x",
    ]
    assert blocks(keys) == [[keys[3]], [keys[2]], [keys[1]], [keys[0]]]
    layers = [f"lora_te_text_model_encoder_layers_{k}_mlp_fc1" for k in (11, 2, 0)]
    assert blocks(layers) == [[key] for key in reversed(layers)]


def test_iteris_solves_its_normal_equations() -> None:
    problem = random_problem(background=False)
    own = [recording.inputs for recording in problem.recordings]
    generator = torch.Generator().manual_seed(1)
    merged = [x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in own]
    targets = [problem.target((i,)) for i in range(3)]
    left, right = 0.0, 0.0
    for i, (x, seen) in enumerate(zip(own, merged, strict=True)):
        whole = problem.weight + dense_target(problem, (i,))
        weight = whole.norm() ** 2 / (x @ whole.mT).norm() ** 2
        left, right = left + weight * seen.mT @ seen, right + weight * dense_target(problem, (i,)) @ x.mT @ seen
    found = iteris(problem, targets, own, merged).dense()
    assert distance(found @ left, right) < 1e-4, "up to the ridge"
    assert distance(iteris(problem, targets, own, own).dense(), found) > 1e-3, (
        "control: what the merged model sees matters"
    )


def test_tables_are_made_of_the_cells_that_there_are(tmp_path: Path) -> None:
    cells = Cells("quality", tmp_path)
    two = {"parts": [3, 4], "right": [1, 2], "swapped": [0, 2], "twice": [1, 2], "neither": [0, 2]}
    alone = {
        "identity": [6, 8],
        "weakest": 0.5,
        "cosine": 0.8,
        "background": [8, 8],
        "unseen": [1, 2],
        "alignment": 1.0,
    }
    merged = {**alone, "identity": [7, 8], "two": two, "regions": two, "three": told([], [])}
    merged |= {"retention": 0.5, "weakest retention": 0.4, "base drift": 0.3, "seconds": 12.4}
    merged["stages"] = {Stage.RECORDING.value: 3.0, Stage.TEXT_INPUTS.value: 1.0, Stage.REFINING.value: 12.0}
    for name in ("n2", "n4"):
        cells.measured(quality.cell(name, 0, ALONE), {}, lambda: alone)
        cells.measured(quality.cell(name, 0, "average"), {}, lambda: merged)
    quality.publish(cells)
    text = (tmp_path / "quality.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| average"))
    assert "0.88 (0.53–0.98)" in line and "0.50 (0.09–0.91) / 0.00 / 0.50 / 0.00" in line and "0.500 (0.400)" in line
    assert text.count("| average | 0.25 | 0.00 | 0.75 | 0.00 | 16 |") == 2, "where the time goes"
    assert text.count("| each LoRA alone") == 2 and "| base model" not in text
    assert "average" in (tmp_path / "quality-two.svg").read_text("utf-8")


def test_a_file_made_elsewhere_is_a_row_of_its_own(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA alone, given as one that holds both, is measured as that LoRA is, and judged as others are."""
    path = Path(bed.inputs[0].file.path)
    given = Given(path)
    kept = bed.retention(given.made(bed.host).factors).concepts
    assert kept[0] > 0.98 > 0.5 > kept[1], "its own concept whole, of the other nothing"
    figures = {"identity": [1, 2], "background": [2, 2], "unseen": [0, 2], "retention": 0.5}
    monkeypatch.setattr(quality.Table, "figures", lambda table, row: figures)
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    asked = ["--sets", "n2", "--rows", "--file", f"one for all={path}"]
    arguments = parser.parse_args(asked)
    arguments.full, arguments.results = False, tmp_path
    quality.main(arguments)
    cells = Cells("quality", tmp_path)
    assert list(cells) == ["n2/seed0/one-for-all"]
    assert cells.known("n2/seed0/one-for-all") == figures
    assert "| one for all |" in (tmp_path / "quality.md").read_text("utf-8")
    for wrong in ("one for all", f"a/b={path}", f"there={tmp_path}"):
        with pytest.raises(SystemExit, match="write NAME=PATH"):
            quality._named_file(wrong)


def test_defaults_are_small_and_full_is_everything() -> None:
    asked = {}
    for full in (False, True):
        parser = argparse.ArgumentParser()
        quality.add_arguments(parser)
        arguments = parser.parse_args(["--two", "3"])
        arguments.full, arguments.results = full, Path("nowhere")
        quality.run, kept = lambda arguments, cells: None, quality.run
        try:
            quality.main(arguments)
        finally:
            quality.run = kept
        asked[full] = arguments
    assert asked[False].sets == ("n2", "n4") and asked[False].seeds == [0] and BASE in asked[False].rows
    assert asked[True].seeds == [0, 1, 2] and set(asked[True].sets) == set(quality.SETS)
    assert asked[False].sizes.two == asked[True].sizes.two == 3 and asked[True].sizes.one > asked[False].sizes.one
