"""The tab in a real WebUI, driven by a real browser.

Needs `LORACLR_WEBUI_DIR` (see test_real_webui.py), and playwright and a Chromium for the WebUI's interpreter (`LORACLR_CHROMIUM`
names one that is not on the path). With `LORACLR_SHOTS`, screenshots are put into that folder.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from webui_process import ROOT, WebUI, demo_models, webui_python


def missing() -> str:
    """What is missing to run this, or nothing."""
    if "LORACLR_WEBUI_DIR" not in os.environ:
        return "LORACLR_WEBUI_DIR names no WebUI to test in"
    if subprocess.run([webui_python(), "-c", "import playwright"], capture_output=True).returncode:
        return f"playwright is not installed for {webui_python()}"
    if not (os.environ.get("LORACLR_CHROMIUM") or shutil.which("chromium")):
        return "there is no chromium on the path, and LORACLR_CHROMIUM names none"
    return ""


REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")

#: what the WebUI prints into the browser's console without us: it asks a server outside for a script, in vain where there is none
VANILLA = ("ERR_NAME_NOT_RESOLVED", "ERR_INTERNET_DISCONNECTED", "iframe-resizer", "reading 'props'")


@contextmanager
def running(folder: Path, *flags: str, settings: dict[str, Any] | None = None) -> Iterator[tuple[WebUI, str]]:
    """A WebUI with the demo checkpoint and this extension, and its address; its log has no errors."""
    demo_models(folder)
    (folder / "extensions").mkdir()
    (folder / "extensions" / "loraclr").symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    webui = WebUI(folder, "--port", str(port), *flags, settings=settings)
    try:
        webui.ask("ready")
        yield webui, f"http://127.0.0.1:{port}/"
    finally:
        webui.close()
    log = webui.log.read_text("utf-8")
    assert "lib_loraclr" not in log and "*** Error" not in log  # no traceback goes through us


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("browser")) as (_, address):
        yield address


def go(url: str, way: str, *, known: tuple[str, ...] = VANILLA, **environment: str) -> dict[str, Any]:
    """What the browser saw on this way; the console has no lines but those that the WebUI prints without us."""
    command = [webui_python(), str(Path(__file__).with_name("browser_way.py")), url, way]
    if "LORACLR_SHOTS" in os.environ:
        command.append(os.environ["LORACLR_SHOTS"])
    done = subprocess.run(command, env={**WebUI.environment(), **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    ours = [line for line in seen["console"] if not any(text in line for text in known)]
    assert not ours
    return seen


def test_the_whole_way(url: str) -> None:
    seen = go(url, "whole")
    assert seen["triggers"] == ["sks animal", "ohwx bird"]
    assert seen["edited"] == "0.9" and seen["kind"] == "style" and seen["bulk"] == ["0.8"] * 3
    assert seen["name"] == "fox-face-penguin-style-mono"
    for text in ("Ready to merge", "ohwx bird", "up to"):
        assert text in seen["check"]
    assert "%" in seen["bar"]
    for text in ("Retention", "fox-face", "Base drift", "Rank", "MB"):
        assert text in seen["result"]
    assert "<lora:fox-face-penguin-style-mono:1>" in seen["kept"]
    assert "fox-face-penguin-style-mono" in seen["cards"]
    assert seen["prompt"] == "sks animal, ohwx bird, <lora:fox-face-penguin-style-mono:1>"
    assert 'Lora hashes: "fox-face-penguin-style-mono: ' in seen["infotext"]


def test_from_prompt_keyboard_interrupt_restore_discard(url: str) -> None:
    seen = go(url, "keyboard")
    assert seen["weights"] == [["0.7", "0.7"], ["0.5", "0.25"]]
    assert "nobody" in seen["message"]
    assert seen["acknowledged"] < 1.0
    assert "Interrupted. Nothing was kept" in seen["interrupted"]
    assert "Retention" in seen["restored"]
    assert "Nothing was written" in seen["discarded"]


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("way", ["looks", "narrow"])
def test_wide_and_narrow_light_and_dark(url: str, way: str, theme: str) -> None:
    assert go(url, way, LORACLR_THEME=theme)["overflow"] <= 0


def test_reload_ui_twice(url: str) -> None:
    # the page asks for the server until it is there again
    known = (*VANILLA, "ERR_CONNECTION_REFUSED", "404 (Not Found)")
    assert go(url, "reload", known=known)["listed"] == ["sks animal"] * 2


def test_without_the_lora_extension(tmp_path: Path) -> None:
    with running(tmp_path / "off", settings={"disabled_extensions": ["Lora"]}) as (_, address):
        assert "built-in extension Lora is switched off" in go(address, "off")["message"]


#: asked by a process of its own, for the tests open no connection
_ASK = """\
import base64, json, sys, urllib.error, urllib.request
url, user, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, {"Content-Type": "application/json"})
if user:
    request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
try:
    with urllib.request.urlopen(request) as answer:
        print(json.dumps([answer.status, json.load(answer)]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.load(error)]))
"""


def ask(url: str, path: str, user: str = "", body: dict[str, Any] | None = None) -> tuple[int, Any]:
    command = [sys.executable, "-c", _ASK, url + path, user, json.dumps(body) if body else ""]
    status, answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return status, answer


def test_routes_with_nowebui_and_api_auth(tmp_path: Path) -> None:
    with running(tmp_path / "api", "--nowebui", "--api-auth", "me:secret") as (_, url):
        assert ask(url, "loraclr/v1/loras")[0] == 401
        assert ask(url, "loraclr/v1/merge", "me:wrong", {"request": {}})[0] == 401
        status, loras = ask(url, "loraclr/v1/loras", "me:secret")
        assert status == 200 and "penguin" in [lora["name"] for lora in loras]
        small = {"recording": {"paths": 1, "steps": 2}, "method": "average"}
        body = {"request": {**small, "concepts": [{"lora": "penguin"}, {"lora": "pizza"}]}, "preview": False}
        _, job = ask(url, "loraclr/v1/merge", "me:secret", body)
        end = time.monotonic() + 300
        path = f"loraclr/v1/jobs/{job['id']}"
        while ask(url, path, "me:secret")[1]["state"] in ("queued", "running") and time.monotonic() < end:
            time.sleep(1)
        status, result = ask(url, f"{path}/result", "me:secret")
        assert status == 200 and result["free_name"] == "penguin-pizza"
        status, kept = ask(url, f"{path}/keep", "me:secret", {"name": "http/pair"})
        assert status == 200 and kept["tag"] == "<lora:pair:1>"
        assert (tmp_path / "api" / "models" / "Lora" / "http" / "pair.safetensors").is_file()
        assert "pair" in [lora["name"] for lora in ask(url, "sdapi/v1/loras", "me:secret")[1]]
