"""What the WebUI calls when it has started and when it unloads its scripts; imports what is behind it only then."""

from __future__ import annotations

import sys
from typing import Any

from modules import shared


def add_routes(demo: Any, app: Any) -> None:
    """For `script_callbacks.on_app_started`: the HTTP routes, with `--api` (which `--nowebui` is too)."""
    if shared.cmd_opts.api or shared.cmd_opts.nowebui:
        from . import routes

        routes.add(app)


def unload() -> None:
    """For `script_callbacks.on_script_unloaded`: stop what runs and let go of everything, if anything ever ran."""
    jobs = sys.modules.get(f"{__package__}.jobs")
    if jobs is not None:
        jobs.unload()
