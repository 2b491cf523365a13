"""Who stands where, asked of a WebUI that is not there."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import places
from bench.__main__ import main
from bench.world import Sprite

ROW = (Sprite("fox face", "sks animal"), Sprite("penguin", "ohwx bird"))


def test_the_same_is_asked_in_both_arms_and_regions_as_the_tab_fills_them_in() -> None:
    one, other = (places.prompt(arm, "friends", ROW, "blue") for arm in (places.ONE_PROMPT, places.REGIONS))
    assert one == "a sks animal and a ohwx bird on a blue background, <lora:friends:1>"
    assert other.split(" BREAK\n") == [
        "<lora:friends:1> a photo of a sks animal on a blue background",
        "a photo of a ohwx bird on a blue background",
    ]


def test_halves_are_judged_where_the_prompt_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions bring both where they belong; one prompt brings the first twice."""
    asked: list[dict[str, Any]] = []

    class Judge:
        def nearest(self, halves: list[Image.Image]) -> list[str]:
            return [{1: "fox face", 2: "penguin"}[half.getpixel((5, 5))[0]] for half in halves]

    def answered(request: Any) -> io.BytesIO:
        asked.append(json.loads(request.data))
        first = asked[-1]["prompt"].index("sks") < asked[-1]["prompt"].index("ohwx")
        left, right = (1, 2) if first else (2, 1)
        right = right if "alwayson_scripts" in asked[-1] else left
        picture, stream = Image.new("RGB", (256, 128), (left, 0, 0)), io.BytesIO()
        picture.paste((right, 0, 0), (128, 0, 256, 128))
        picture.save(stream, "PNG")
        return io.BytesIO(json.dumps({"images": [base64.b64encode(stream.getvalue()).decode()]}).encode())

    monkeypatch.setattr(places, "urlopen", answered)
    monkeypatch.setattr(places, "Judge", Judge)
    main(["--results", str(tmp_path), "places", "--merged", "friends", "--pictures", "4"])
    one, regions = (asked[:4], asked[4:])
    assert [own["seed"] for own in one] == [own["seed"] for own in regions] and len({own["seed"] for own in one}) == 4
    assert not any("alwayson_scripts" in own for own in one) and all("alwayson_scripts" in own for own in regions)
    rows = [
        line.split(" | ")
        for line in (tmp_path / "places.md").read_text("utf-8").splitlines()
        if "0." in line or "1." in line
    ]
    assert [row[1][:4] for row in rows] == ["0.50", "1.00"] and [row[2][:4] for row in rows] == ["0.00", "1.00"]
    assert rows[0][4].startswith("1.00"), "one of them twice"
