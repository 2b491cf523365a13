"""Two concepts in one picture in a running WebUI: by one prompt, and with Regional Prompter as the tab fills it in.

    python dev.py bench places --webui http://127.0.0.1:7860 --merged friends

Asks a WebUI 1.10 with `--api`, Regional Prompter, the demo's checkpoint and a merge of the named LoRAs; the judge is the demo's.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Sequence
from itertools import permutations
from urllib.request import Request, urlopen

from PIL import Image

from bench.cells import Cells
from bench.judge import Judge
from bench.protocol import BACKGROUNDS, GUIDANCE, SEED, SHARES, SIDE, STEPS, listed, told
from bench.tables import markdown, share
from bench.world import Sprite, demo_request

#: what Regional Prompter takes over HTTP, in its order, with the values that *Send to txt2img* fills in
_REGIONS = (
    *(True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", ""),
    *(False, False, False, "Attention", [], "0", "0", "0", "", "0", "0", False),
)
ONE_PROMPT, REGIONS = "one prompt", "Regional Prompter"


def prompt(arm: str, merged: str, row: Sequence[Sprite], background: str) -> str:
    """What is asked of the WebUI."""
    if arm == ONE_PROMPT:
        return f"{listed(row)} on a {background} background, <lora:{merged}:1>"
    asked = [f"a photo of a {sprite.words} on a {background} background" for sprite in row]
    return f"<lora:{merged}:1> " + " BREAK\n".join(asked)


def draw(webui: str, arm: str, text: str, seed: int) -> Image.Image:
    """A picture by the WebUI, wide enough for two."""
    asked = {
        "prompt": text,
        "seed": seed,
        "steps": STEPS,
        "cfg_scale": GUIDANCE,
        "sampler_name": "Euler",
        "width": 2 * SIDE,
        "height": SIDE,
        "save_images": False,
    }
    if arm == REGIONS:
        asked["alwayson_scripts"] = {REGIONS: {"args": list(_REGIONS)}}
    body, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
    with urlopen(Request(f"{webui.rstrip('/')}/sdapi/v1/txt2img", body, kind)) as answer:
        encoded = json.load(answer)["images"][0]
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def judged(arguments: argparse.Namespace, arm: str, judge: Judge, sprites: Sequence[Sprite]) -> dict[str, list]:
    """One cell: every order in turn, on the same seeds and backgrounds in each arm."""
    orders = list(permutations(sprites, 2))
    chosen, seen = [], []
    for k in range(arguments.pictures):
        row, background = orders[k % len(orders)], BACKGROUNDS[k // len(orders) % len(BACKGROUNDS)]
        picture = draw(arguments.webui, arm, prompt(arm, arguments.merged, row, background), SEED + k)
        seen.append(tuple(judge.nearest([picture.crop((SIDE * n, 0, SIDE * (n + 1), SIDE)) for n in range(2)])))
        chosen.append(row)
    return told(chosen, seen)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--webui", default="http://127.0.0.1:7860", metavar="URL")
    parser.add_argument("--merged", default="", metavar="NAME", help="what prompts call the merge")
    parser.add_argument("--names", nargs="+", default=["fox-face", "penguin"], help="of LoRAs that are in it")
    parser.add_argument("--pictures", type=int, default=32)


def main(arguments: argparse.Namespace) -> None:
    cells, judge, sprites = Cells("places", arguments.results), Judge(), demo_request(arguments.names, "default")[1]
    rows = []
    for arm in (ONE_PROMPT, REGIONS):
        asked = {"merged": arguments.merged, "names": arguments.names, "pictures": arguments.pictures}
        figures = cells.measured(
            f"{arguments.merged}/{arm.replace(' ', '-')}", asked, lambda arm=arm: judged(arguments, arm, judge, sprites)
        )
        rows.append([arm, *(share([figures[name]]) for name in SHARES)])
    title = f"# Places\n\n{__doc__.splitlines()[0]} By `python dev.py bench places`; 95 % intervals.\n\n"
    print(cells.publish(title + markdown(("", *SHARES), rows)).read_text("utf-8"))
