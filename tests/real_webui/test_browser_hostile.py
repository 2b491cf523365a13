"""What strangers write stays text in a real WebUI's page: nothing of it is run by the browser, and all of it is read.

Needs what `test_browser.py` needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import VANILLA, go, missing, running
from programs import A1111
from safetensors.torch import load_file, save_file
from webui_process import demo_models

REASON = A1111.missing or missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


def image(place: str) -> str:
    """What says `place` when a browser takes it for HTML; file systems and selectors take it as well."""
    return f"<img src=x onerror=ran`{place}`>"


def run(place: str) -> str:
    """The same where a slash may stand."""
    return f"<script>ran(`{place}`)</script>{image(place)}"


LORAS = [f"fox{image('name')}", f"penguin{image('other')}"]
BROKEN = f"broken{image('broken')}"
HOSTILE: dict[str, Any] = {
    "loras": LORAS,
    "broken": BROKEN,
    "name": image("typed"),
    "prompt": f"a cat {run('prompt')}",
    "tags": f"a cat <lora:nobody{image('tag')}:1>",
}
#: where -> what is read there
READ = {
    "picker": ["name", "other", "broken", "folder"],
    "rows": ["name", "other", "broken", "folder"],
    "words": ["trigger"],
    "refused": ["broken", "tensor"],
    "check": ["name", "other", "trigger", "licence", "checkpoint"],
    "bar": ["name"],
    "result": ["name", "other", "trigger"],
    "name": ["typed"],
    "tried": ["prompt"],
    "message": ["tag"],
    "history": ["logged", "figure", "where", "elsewhere", "made-on"],
    "filled in": ["concept"],
}


def _models(folder: Path) -> None:
    demo_models(folder)
    checkpoints, loras = folder / "models" / "Stable-diffusion", folder / "models" / "Lora"
    for file in list(checkpoints.iterdir()):
        file.rename(file.with_name(f"emoji{image('checkpoint')}{file.suffix}"))
    (loras / f"shelf{image('folder')}").mkdir()
    (loras / "fox-face.safetensors").rename(loras / f"{LORAS[0]}.safetensors")
    told = {
        "modelspec.trigger_phrase": f"ohwx bird {run('trigger')}",
        "modelspec.license": f"CC-BY-ND {run('licence')}",
        "modelspec.author": run("author"),
        "modelspec.title": run("title"),
        "ss_output_name": run("alias"),
        "ss_tag_frequency": json.dumps({f"1_{run('tags')}": {run("tag"): 3}}),
    }
    penguin = load_file(loras / "penguin.safetensors")
    save_file(penguin, loras / f"shelf{image('folder')}" / f"{LORAS[1]}.safetensors", told)
    header = json.dumps({run("tensor"): {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()
    (loras / f"{BROKEN}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    recipe = {"loraclr.request": json.dumps({"concepts": [{"lora": f"gone{image('concept')}.safetensors"}]})}
    where = {"loraclr.checkpoint": f"{run('elsewhere')} {run('made-on')}"}
    save_file(penguin, loras / "elsewhere.safetensors", {**recipe, **where})
    logged = {"id": image("id"), "name": run("logged"), "date": 1e9, "save_as": "lora", "checkpoint": run("where")}
    log = [{**logged, "figures": {run("figure"): 0.5}, "recipe": {"concepts": [{"lora": "a"}]}}]
    (folder / "loraclr-history.json").write_text(json.dumps(log), "utf-8")


def test_what_strangers_write_is_read_and_never_run(tmp_path: Path) -> None:
    with running(tmp_path, models=_models) as (webui, url):
        webui.ask("spare")
        # pictures of nothing are asked for by the control alone
        seen = go(url, "hostile", LORACLR_HOSTILE=json.dumps(HOSTILE), known=(*VANILLA, f"{url}x"))
    assert seen["run"] == [] and seen["control"] == ["control"]
    unread = {
        (where, place) for where, places in READ.items() for place in places if f"ran`{place}`" not in seen[where]
    }
    assert not unread
    assert "Kept as harmless" in seen["kept"]
