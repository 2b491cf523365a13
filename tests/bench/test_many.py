"""Many concepts: lists of more of them, merges at once and in groups, and the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import many
from bench.__main__ import main
from bench.cells import Cells
from bench.judge import DEMO
from lib_loraclr.errors import LoraclrError
from lib_loraclr.merge import Start
from lib_loraclr.model.host import Host
from lib_loraclr.output import Merge
from lib_loraclr.request.merge_request import MergeRequest, RecordingOptions
from tests.small import measure_on_little


def test_subjects_of_several_lists_come_in_their_order_without_styles(tmp_path: Path) -> None:
    (tmp_path / "owl.safetensors").write_bytes(b"")
    entry = {"file": "owl.safetensors", "name": "owl", "trigger": "hgw", "class": "bird"}
    more = tmp_path / "more.json"
    more.write_text(json.dumps([entry, {"file": "none", "kind": "style"}]), "utf-8")
    found = many.subjects([DEMO / "concepts.json", more])
    assert len(found) == 13
    concept, sprite = found[-1]
    assert (concept.label, concept.trigger, sprite.name) == ("owl", "hgw bird", "owl")
    more.write_text(json.dumps([{**entry, "file": "lost.safetensors"}]), "utf-8")
    with pytest.raises(LoraclrError, match=r"lost\.safetensors, which is not there"):
        many.subjects([more])


def test_groups_are_merged_by_themselves_and_then_joined(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    concepts = [concept for concept, _ in many.subjects([DEMO / "concepts.json"])][:3]
    recording = RecordingOptions(paths=1, steps=3, height=64, width=64)
    options = {"effort": "fast", "steps": 1, "batch_size": 1, "scenes": 0}
    request = replace(MergeRequest(tuple(concepts)), recording=recording, options=options)
    asked: list[tuple[list[str], list[set[str]]]] = []

    def merge(own: MergeRequest, *rest: object, start: Start | None = None) -> Merge:
        parts = [set(part.labels) for part in start.merges] if start else []
        asked.append(([concept.label for concept in own.concepts], parts))
        return kept(own, *rest, start=start)

    kept = many.merge_loras
    monkeypatch.setattr(many, "merge_loras", merge)
    grouped, took = many.merged(request, host, many.parts_of("groups", 3, 2))
    a, b, c = (concept.label for concept in concepts)
    assert asked == [([a, b], []), ([c], []), ([a, b, c], [{a, b}, {c}])]
    assert [told.name for told in grouped.report.concepts] == [a, b, c] and took.processor > 0
    asked.clear()
    many.merged(request, host, many.parts_of("flat", 3, 2))
    assert asked == [([a, b, c], [])]
    asked.clear()
    _, alone = many.merged(request, host, many.parts_of("added", 3, 2), counted=False)
    assert asked == [([a, b], []), ([a, b, c], [{a, b}])]
    assert 0 < alone.processor < took.processor, "what was there is not counted"


def test_a_row_for_each_number_and_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def figures(
        request: MergeRequest, host: object, judge: object, sprites: list, sizes: object, way: str, group: int
    ) -> dict:
        asked.append((len(request.concepts), way, group, request.options["effort"]))
        two = {"parts": [3, 4], "right": [1, 2], "swapped": [0, 2], "twice": [1, 2], "neither": [0, 2]}
        own = {"identity": [6, 8], "weakest": 0.5, "unseen": [1, 2], "two": two, "retention": [0.25, 0.75]}
        return {**own, "rank": 12.2, "largest rank": 30, "bytes": 3 << 20, "seconds": 99.6}

    monkeypatch.setattr(many, "figures", figures)
    monkeypatch.setattr(many, "demo_host", lambda: None)
    main(["--results", str(tmp_path), "many", "--numbers", "2", "4", "--ways", "flat", "groups", "--group", "3"])
    assert asked == [(number, way, group, "fast") for number in (2, 4) for way, group in (("flat", 0), ("groups", 3))]
    text = (tmp_path / "many.md").read_text("utf-8")
    assert "| 2, flat, fast | 0.75 (0.41–0.93) | 0.50 |" in text and "0.500 (0.250) | 12 (30) | 3.0 | 100 |" in text
    assert text.index("| 2, groups, fast") < text.index("| 4, flat, fast")
    assert "groups, fast" in (tmp_path / "many-identity.svg").read_text("utf-8")
    assert len(list(Cells("many", tmp_path))) == 4
    with pytest.raises(SystemExit, match="12 concepts are known; name others with --more"):
        main(["--results", str(tmp_path), "many", "--numbers", "13"])
