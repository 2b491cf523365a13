"""What the WebUI's script names without importing the engine, which is imported when somebody comes through a door.

Registering a callback costs the WebUI's start as much time as importing ten modules (`script_callbacks.add_callback` reads the
sources of the whole stack), so the script registers as few as will do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modules import shared

if TYPE_CHECKING:
    from .actions import Actions


def has_routes() -> bool:
    """Whether the WebUI was started with `--api`, which `--nowebui` is too."""
    return bool(shared.cmd_opts.api or shared.cmd_opts.nowebui)


def add_routes(demo: Any, app: Any) -> None:
    """For `script_callbacks.on_app_started`: the HTTP routes."""
    from . import routes

    routes.add(app)


def add_axes() -> None:
    """Axes for the WebUI's X/Y/Z plot."""
    from . import axes

    axes.add()


def actions(names: Sequence[str]) -> Actions:
    """What the tab's components do.

    Args:
        names: of the tab's fields, in the order their values arrive
    """
    from .actions import Actions

    return Actions(names)


def is_closing() -> bool:
    """Whether Reload UI or the WebUI's end has been asked for: its server waits for what runs, and so would everybody."""
    server = getattr(getattr(shared, "demo", None), "server", None)
    return getattr(server, "should_exit", False) is True


def end_former() -> None:
    """Stop what runs of the scripts that were loaded before; "Reload UI" keeps their modules."""
    jobs = sys.modules.get(f"{__package__}.jobs")
    if jobs is not None:
        jobs.unload()
