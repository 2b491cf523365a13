"""install.py and the entry script: small, and silent."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from webui_doors import Doors

ROOT = Path(__file__).parents[3]


def test_install_is_silent_and_installs_nothing() -> None:
    done = subprocess.run([sys.executable, ROOT / "install.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (ROOT / "install.py").read_text("utf-8")
    assert len(text.splitlines()) <= 20 and "pip" not in text and "import torch" not in text


def test_install_names_what_is_missing() -> None:
    code = "import sys, runpy; runpy.run_path(sys.argv[1])"
    done = subprocess.run([sys.executable, "-S", "-c", code, ROOT / "install.py"], capture_output=True, text=True)
    assert done.returncode != 0 and "missing torch, safetensors" in done.stderr


def test_the_entry_script_is_the_only_one_and_short() -> None:
    assert [path.name for path in (ROOT / "scripts").glob("*.py")] == ["loraclr.py"]
    assert len((ROOT / "scripts" / "loraclr.py").read_text("utf-8").splitlines()) <= 40


def test_callbacks_are_registered_by_the_script_and_never_by_the_library() -> None:
    for path in (ROOT / "lib_loraclr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr.startswith("on_")), path
            assert not (isinstance(node, ast.alias) and "script_callbacks" in node.name), path


def test_importing_the_doors_touches_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a checkpoint is loaded, `shared.sd_model` loads it and waits: nothing may ask for it while the tab is made."""
    doors = Doors(tmp_path / "Lora", monkeypatch, lora=False)
    del doors.webui.shared.sd_model
    doors.webui.sd_models.model_data.sd_model = None
    for name in ("actions", "catalogue", "check", "estimate", "form", "jobs", "pace", "rows", "views"):
        doors.module(name)


def test_every_global_of_the_browsers_script_has_the_prefix() -> None:
    import re

    text = "".join(file.read_text("utf-8") for file in (ROOT / "javascript").glob("*.js"))
    names = re.findall(r"^(?:async )?(?:function|const|let|var|class) (\w+)", text, re.MULTILINE)
    assert names and all(name.startswith("loraclr") for name in names)


def test_every_rule_of_the_style_is_under_the_tab() -> None:
    import re

    text = re.sub(r"/\*.*?\*/", "", (ROOT / "style.css").read_text("utf-8"), flags=re.DOTALL)
    selectors = [part.strip() for block in re.findall(r"([^{}]+)\{", text) for part in block.split(",")]
    assert selectors
    for selector in selectors:
        assert selector.startswith(("#tab_loraclr", "@media")), selector
    assert "url(" not in text and "@import" not in text  # nothing from elsewhere


def test_the_entry_for_the_extensions_index_has_what_its_check_asks_for() -> None:
    """Fields and tags as `validate.py` and `tags.json` of the index have them; it adds the date itself."""
    entry = json.loads((ROOT / "docs" / "extensions-index.json").read_text("utf-8"))
    assert list(entry) == ["name", "url", "description", "tags"]
    assert entry["url"].startswith("https://") and entry["url"].endswith(".git")
    assert entry["tags"] == ["tab", "models"] and len(entry["description"]) < 150
