"""Answers, inside the real WebUI, the questions that `webui_process.py` asks: each is the name of a function in `MODULES`."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import forge_checks
import forge_sizes
import reforge_sizes
import webui_checks
import webui_faults
import webui_haul
import webui_kinds
import webui_pictures
import webui_work

MODULES = (webui_checks, webui_faults, webui_haul, webui_kinds, webui_pictures, webui_work, forge_checks)


def _find(name: str) -> Callable[..., Any]:
    return next(vars(module)[name] for module in MODULES if name in vars(module))


@cache  # Reload UI asks again
def answer(mailbox: str) -> None:
    """Answer questions as they come in, in a thread of its own."""
    threading.Thread(target=_serve, args=(Path(mailbox),), daemon=True).start()


def register_text_encoders(files: Sequence[str]) -> None:
    """Tell open_clip of sizes that the tests made up; before a checkpoint is loaded."""
    import open_clip

    for file in files:
        open_clip.add_model_config(file)


@cache
def recognise(clip: str, folder: str) -> None:
    """Tell a WebUI of the Forge family of sizes that the tests made up; before a checkpoint is loaded.

    Args:
        clip: folder with CLIP's tokenizer and sizes
        folder: where configurations may be written
    """
    if importlib.util.find_spec("huggingface_guess"):
        forge_sizes.recognise(clip, folder)
    else:
        reforge_sizes.recognise(clip)


def _serve(mailbox: Path) -> None:
    while True:
        for question in sorted(mailbox.glob("*.question")):
            asked = json.loads(question.read_text("utf-8"))
            question.unlink()
            try:
                result = {"value": _find(asked["check"])(**asked["arguments"])}
            except Exception:  # noqa: BLE001  (the test shows whatever went wrong)
                result = {"error": traceback.format_exc()}
            draft = question.with_suffix(".reply")
            draft.write_text(json.dumps(result), "utf-8")
            draft.replace(question.with_suffix(".answer"))
        time.sleep(0.02)
