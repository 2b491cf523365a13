"""Who stands where in what is sent to txt2img: the choice, and what the WebUI pastes from. What it does is in arranging.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import infotext_utils

from .scripting import by_script

ONE = "One prompt"
#: arrangement -> subjects in it
COLUMNS = {"Side by side": 2, "Three columns": 3}


class ArrangingFields:
    """Makes the choice, and the hidden parts that the WebUI's own pasting is connected to."""

    def __init__(self) -> None:
        self.choice = gr.Radio(
            [ONE, *COLUMNS],
            value=ONE,
            label="Arrangement",
            elem_id="loraclr_arrangement",
            tooltip="Regional Prompter or Forge Couple, where it is installed, is filled in: a region for each concept",
        )
        self.note = gr.HTML("", elem_id="loraclr_arrangement_note")
        self.now = gr.Textbox(visible=False, elem_id="loraclr_now")
        self.infotext = gr.Textbox(visible=False, elem_id="loraclr_infotext")
        self.arrange = gr.Button(visible=False, elem_id="loraclr_arrange")
        paste = gr.Button(visible=False, elem_id="loraclr_paste")
        binding = infotext_utils.ParamBinding(
            paste_button=paste, tabname="txt2img", source_text_component=self.infotext
        )
        infotext_utils.register_paste_params_button(binding)

    def connect(self, sentence: Callable[..., Any], infotext: Callable[..., Any], job: Any) -> None:
        """The events; `loraclrSend` begins with the hidden button, and `loraclrPaste` ends with the WebUI's."""
        self.choice.change(sentence, [self.choice], [self.note], show_progress=False)
        inputs = [job, self.choice, self.now]
        self.arrange.click(
            infotext, inputs, [self.infotext, self.note], **by_script("loraclrNow", inputs), show_progress=False
        ).then(None, [self.infotext], **by_script("loraclrPaste", [self.infotext]))
