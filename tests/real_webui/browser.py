"""What the tests in a browser share: a WebUI with this extension, a browser's way through it, and HTTP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from programs import A1111, Program
from webui_process import DEMO, ROOT, WebUI, demo_models


def missing() -> str:
    """What is missing to drive a browser, or nothing."""
    if subprocess.run([A1111.python, "-c", "import playwright"], capture_output=True).returncode:
        return f"playwright is not installed for {A1111.python}"
    if not (os.environ.get("LORACLR_CHROMIUM") or shutil.which("chromium")):
        return "there is no chromium on the path, and LORACLR_CHROMIUM names none"
    return ""


#: what the WebUI prints into the browser's console without us: it asks a server outside for a script, in vain where there is none
VANILLA = (
    *("ERR_NAME_NOT_RESOLVED", "ERR_INTERNET_DISCONNECTED", "iframe-resizer", "reading 'props'"),
    # gradio 4.40, at every call that has any arguments, txt2img's counting of words included
    *("non-interactive or hidden tab", "Too many arguments provided for the endpoint"),
)


#: while the WebUI starts anew, the page asks for it until it is there, and then for its old theme; gradio 4.40 misses it at once.
#: Without us too (`test_install_from_url_restart_reload` looks), but for the last, which is said where something was running
RELOADING = (
    *VANILLA,
    *("ERR_CONNECTION_REFUSED", "404 (Not Found)"),
    *("Element is not in the DOM", "Connection errored out", "Failed to fetch", "Server stopped unexpectedly"),
)


def install_link(folder: Path) -> None:
    """This extension in a WebUI's data folder, as it is here."""
    (folder / "extensions").mkdir(exist_ok=True)
    (folder / "extensions" / "loraclr").symlink_to(ROOT, target_is_directory=True)


@contextmanager
def started(
    folder: Path,
    *flags: str,
    settings: dict[str, Any] | None = None,
    ready: str = "ready",
    api: bool = True,
    program: Program = A1111,
) -> Iterator[tuple[WebUI, str]]:
    """A WebUI on a data folder that has all it needs, and its address; no traceback in its log goes through us.

    Args:
        ready: what it is asked first (`webui_answers`), and has to answer
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if program.forge:  # its own files, which a data folder elsewhere would hide from the page, and ours
        flags += tuple(part for path in (program.folder, DEMO.parent) for part in ("--gradio-allowed-path", str(path)))
    webui = WebUI(folder, "--port", str(port), *flags, settings=settings, api=api, program=program)
    try:
        webui.ask(ready)
        yield webui, f"http://127.0.0.1:{port}/"
    finally:
        webui.close()
    log = webui.log.read_text("utf-8")
    assert "lib_loraclr" not in log and "*** Error" not in log


@contextmanager
def running(
    folder: Path,
    *flags: str,
    settings: dict[str, Any] | None = None,
    models: Callable[[Path], None] = demo_models,
    ready: str = "ready",
    program: Program = A1111,
) -> Iterator[tuple[WebUI, str]]:
    """A WebUI with the demo checkpoint (or what `models` puts there) and this extension, and its address."""
    models(folder)
    install_link(folder)
    with started(folder, *flags, settings=settings, ready=ready, program=program) as found:
        yield found


def go(url: str, way: str, *, known: tuple[str, ...] = VANILLA, **environment: str) -> dict[str, Any]:
    """What the browser saw on this way; the console has no lines but those that the WebUI prints without us."""
    command = [A1111.python, str(Path(__file__).with_name("browser_way.py")), url, way]
    if "LORACLR_SHOTS" in os.environ:
        command.append(os.environ["LORACLR_SHOTS"])
    done = subprocess.run(command, env={**WebUI.environment(), **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    ours = [line for line in seen["console"] if not any(text in line for text in known)]
    assert not ours, ours  # said here, for pytest explains no assertion outside of test files
    return seen


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
