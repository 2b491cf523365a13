"""Pictures of the real WebUI, by its own API, and its settings."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import urllib.request
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image


def picture(prompt: str, **changes: Any) -> str:
    """The hash of the pixels (not of the file, which has the prompt in it)."""
    return hashlib.sha256(pixels(prompt, **changes).tobytes()).hexdigest()


def post(route: str, asked: Mapping[str, Any]) -> Any:
    from modules import shared

    url = f"http://127.0.0.1:{shared.cmd_opts.port}/sdapi/v1/{route}"
    body = json.dumps(asked).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as response:
        return json.load(response)


def get(route: str) -> Any:
    from modules import shared

    with urllib.request.urlopen(f"http://127.0.0.1:{shared.cmd_opts.port}/sdapi/v1/{route}") as response:
        return json.load(response)


def pixels(prompt: str, **changes: Any):
    """A picture `[h, w, 3]`, 0..255."""
    import numpy as np

    asked = {
        "prompt": prompt,
        "seed": 7,
        "steps": 4,
        "cfg_scale": 4,
        "width": 128,
        "height": 128,
        "sampler_name": "DDIM",
    }
    encoded = post("txt2img", {**asked, **changes})["images"][0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def picture_distance(first: str, second: str, **changes: Any) -> float:
    """The largest difference of two pictures' pixels, 0..255."""
    one, other = (pixels(prompt, **changes).astype(int) for prompt in (first, second))
    return float(abs(one - other).max())


@contextmanager
def settings(**values: Any):
    from modules import shared

    before = {name: getattr(shared.opts, name) for name in values}
    shared.opts.data.update(values)
    try:
        yield
    finally:
        shared.opts.data.update(before)
