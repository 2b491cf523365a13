"""Installed as users install it, in each real WebUI; with the built-in Lora switched off; without the front end.

Needs what test_browser.py needs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from browser import RELOADING, ask, go, missing, running, started
from programs import A1111, EVERY, Program
from webui_process import ROOT, demo_models

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")
A1111_ALONE = pytest.mark.skipif(bool(A1111.missing), reason=A1111.missing or "-")


def repository(folder: Path) -> str:
    """A git repository with the files as they are here, and its URL."""
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    listed = subprocess.run(
        [*git, "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "All"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder.as_uri()


def packages(program: Program) -> list[str]:
    """What is installed for the WebUI, with versions."""
    code = "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'], d.version)"
    done = subprocess.run([program.python, "-c", code], capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines())


def lines(log: str) -> set[str]:
    """A log's lines without their figures."""
    return {re.sub(r"[\d.]+", "0", line).strip() for line in log.splitlines()}


def absent(console: list[str]) -> set[str]:
    """Paths that were not found, but for what a page asks until the WebUI has started anew."""
    lost = {re.sub(r".*\(https?://[^/]+", "", line) for line in console if "404" in line}
    return {path for path in lost if not path.startswith("/internal/ping")}


@pytest.mark.parametrize("program", EVERY)
def test_install_from_url_restart_reload(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    demo_models(folder)
    before = packages(program)
    with started(folder, api=False, program=program) as (webui, url):
        seen = go(url, "vanilla", known=RELOADING)
        assert seen["tab"] == 0, "control: it is not there before"
        without, alone = webui.log.read_text("utf-8"), absent(seen["console"])
        told = go(url, "install", LORACLR_INSTALL_URL=repository(tmp_path / "loraclr"))["told"]
        assert "Installed into" in told and (folder / "extensions" / "loraclr" / "install.py").is_file()
    # as Python does by itself at the first start, where nobody has forbidden it
    compiled = [program.python, "-m", "compileall", "-q", str(folder / "extensions" / "loraclr")]
    subprocess.run(compiled, check=True)
    with started(folder, api=False, program=program) as (webui, url):
        _, profile = ask(url, "internal/profile-startup")
        # what users see under "Startup profile": a fortieth mostly; twice that on a busy machine, an import too many is far more
        assert profile["records"]["load scripts/loraclr.py"] < 0.05 * profile["total"]
        seen = go(url, "reload", known=RELOADING)
        assert seen["listed"] == ["sks animal"] * 2
        assert absent(seen["console"]) <= alone, "no file is missing but those of the WebUI"
        new = lines(webui.log.read_text("utf-8")) - lines(without)
    assert not [line for line in new if re.search("error|warn|traceback|loraclr", line, re.IGNORECASE)]
    assert packages(program) == before


@pytest.mark.parametrize("program", EVERY)
def test_without_the_lora_extension(program: Program, tmp_path: Path) -> None:
    settings = {"disabled_extensions": [program.lora]}
    with running(tmp_path / "off", settings=settings, program=program) as (_, address):
        assert "built-in extension Lora is switched off" in go(address, "off")["message"]


@A1111_ALONE
def test_without_a_checkpoint(tmp_path: Path) -> None:
    def only_loras(folder: Path) -> None:
        demo_models(folder)
        shutil.rmtree(folder / "models" / "Stable-diffusion")

    with running(tmp_path / "bare", models=only_loras, ready="library") as (_, url):
        assert "The WebUI has no checkpoint loaded: choose one" in go(url, "bare")["told"]


@A1111_ALONE
def test_routes_with_nowebui_and_api_auth(tmp_path: Path) -> None:
    with running(tmp_path / "api", "--nowebui", "--api-auth", "me:secret,you:other") as (_, url):
        assert ask(url, "loraclr/v1/loras")[0] == 401
        assert ask(url, "loraclr/v1/merge", "me:wrong", {"request": {}})[0] == 401
        described = ask(url, "openapi.json")[1]["paths"]  # what /docs shows
        assert len([path for path in described if path.startswith("/loraclr/v1/")]) == 10
        status, loras = ask(url, "loraclr/v1/loras", "me:secret")
        assert status == 200 and "penguin" in [lora["name"] for lora in loras]
        small = {"recording": {"paths": 1, "steps": 2}, "method": "average"}
        body = {"request": {**small, "concepts": [{"lora": "penguin"}, {"lora": "pizza"}]}, "preview": False}
        _, job = ask(url, "loraclr/v1/merge", "me:secret", body)
        end = time.monotonic() + 900
        path = f"loraclr/v1/jobs/{job['id']}"
        while ask(url, path, "me:secret")[1]["state"] in ("queued", "running") and time.monotonic() < end:
            ask(url, "sdapi/v1/interrupt", "me:secret", {"now": True})  # is for pictures
            time.sleep(1)
        assert ask(url, path, "you:other")[0] == 404
        status, result = ask(url, f"{path}/result", "me:secret")
        assert status == 200 and result["free_name"] == "penguin-pizza", result
        status, kept = ask(url, f"{path}/keep", "me:secret", {"name": "http/pair"})
        assert status == 200 and kept["tag"] == "<lora:pair:1>"
        assert (tmp_path / "api" / "models" / "Lora" / "http" / "pair.safetensors").is_file()
        assert "pair" in [lora["name"] for lora in ask(url, "sdapi/v1/loras", "me:secret")[1]]
        lora = tmp_path / "api" / "models" / "Lora" / "penguin.safetensors"
        before = {path.name: path.read_bytes() for path in lora.parent.glob("penguin*")}
        _, job = ask(url, "loraclr/v1/merge", "me:secret", body)
        path = f"loraclr/v1/jobs/{job['id']}"
        while ask(url, path, "me:secret")[1]["state"] in ("queued", "running") and time.monotonic() < end:
            time.sleep(1)
        status, refused = ask(url, f"{path}/keep", "me:secret", {"name": "penguin"})
        assert status == 409 and str(tmp_path) not in str(refused)
        assert ask(url, f"{path}/keep", "me:secret", {"name": "penguin", "overwrite": True})[1]["can_be_put_back"]
        assert lora.read_bytes() != before["penguin.safetensors"]
        assert ask(url, f"{path}/put_back", "me:secret", {"now": True})[1]["state"] == "put back"
        assert {path.name: path.read_bytes() for path in lora.parent.glob("penguin*")} == before
        assert not [path.name for path in lora.parent.iterdir() if path.name.startswith(".")]
