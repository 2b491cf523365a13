"""The section LoRACLR of the Settings tab."""

from __future__ import annotations

import gradio as gr
from modules import shared

from ...request import MergeRequest
from .labels import method_choices

#: where no setting was saved: what a request has that says nothing of it
_METHOD = MergeRequest(()).method
_SECTION = ("loraclr", "LoRACLR")
#: key -> (default, label, component, its arguments, explanation)
_OPTIONS = {
    "loraclr_memory": (
        1024,
        "Memory budget of a merge in MB",
        gr.Number,
        {"precision": 0, "minimum": 64},
        "in RAM, for recorded inputs and predictions together",
    ),
    "loraclr_method": (
        _METHOD,
        "Method that a merge begins with",
        gr.Radio,
        {"choices": method_choices()},
        "effort, prompts and precision are kept under Settings > Defaults, as the other tabs' fields are",
    ),
    "loraclr_sub_folder": ("", "Sub-folder for merged LoRAs", gr.Textbox, {}, "inside the LoRA folder; empty for none"),
    "loraclr_preview": (True, "Draw pictures of a merge", gr.Checkbox, {}, "to judge it by, and for its card"),
    "loraclr_sheet": (
        False,
        "Keep the picture to judge a merge by",
        gr.Checkbox,
        {},
        "as NAME.report.png beside the file; the card's own picture shows merged pictures only",
    ),
    "loraclr_work_limit": (
        2048,
        "Disk space in MB for what merges record",
        gr.Number,
        {"precision": 0, "minimum": 0},
        "so that one that was ended goes on where it was, and another of the same LoRAs records less; what was used longest ago "
        "goes first; 0 for none",
    ),
    "loraclr_work_folder": (
        "",
        "Folder for what merges record",
        gr.Textbox,
        {"visible": not shared.cmd_opts.hide_ui_dir_config},
        "empty for loraclr-work in the WebUI's folder of caches",
    ),
}
#: read whenever they are needed; the others stand in the tab's fields, which are made once
_READ_ANEW = ("loraclr_work_limit", "loraclr_work_folder")


def add() -> None:
    """For `script_callbacks.on_ui_settings`."""
    for key, (default, label, component, arguments, text) in _OPTIONS.items():
        info = shared.OptionInfo(default, label, component, dict(arguments), section=_SECTION)
        told = info.info(text) if text else info
        shared.opts.add_option(key, told if key in _READ_ANEW else told.needs_reload_ui())
    # where folders are hidden this one cannot be set over HTTP either, as those of the WebUI
    shared.opts.restricted_opts.add("loraclr_work_folder")


def value(key: str):
    """A setting, or its default where a saved one does not fit any more."""
    default, _, _, arguments, _ = _OPTIONS[key]
    found = getattr(shared.opts, key, default)
    choices = [name for _, name in arguments.get("choices", ())]
    return default if found is None or (choices and found not in choices) else found


def may_open_folders() -> bool:
    """Whether who looks at the tab may be at the computer that the WebUI runs on, and folders are not hidden from them."""
    options = shared.cmd_opts
    return not (options.webui_is_non_local or options.hide_ui_dir_config)
