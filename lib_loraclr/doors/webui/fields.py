"""The tab's fields on the left: effort and name, and, folded away, prompts and everything else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
from modules.ui_components import DropdownEditable, FormRow

from ...request import PRECISIONS, SAVE_AS, TEMPLATES, MergeRequest, Option, PromptOptions, schema
from ...solving import EFFORT, METHODS, all_efforts
from . import settings
from .comparing_fields import ComparingFields
from .form import option_field
from .labels import BANKS, SAVED, WAYS, method_choices, option_label, with_code
from .work_fields import WorkFields

_DEFAULTS = MergeRequest(())
_EFFORT = next(item.default for item in schema(METHODS[_DEFAULTS.method].options) if item.name == EFFORT)
#: what belongs to a person rather than to one merge: the WebUI's Settings > Defaults holds these, and no others
KEPT_AS_DEFAULTS = (EFFORT, "precision", "templates", "plain", "bank", "quality", "negative")
#: options of methods that a merge takes longer or shorter by
_TIMED_OPTIONS = (".steps", ".batch_size", ".scenes", ".rollouts", ".layer_steps")


class Fields:
    """Makes the fields, in the order they are seen.

    Attributes:
        fields: what becomes the request (`form.settings`), by name
        preset: the radio that fills the templates
        draw: whether a picture is drawn
        method_boxes: method -> the column with its options
        compare: the methods side by side
        work: what merges keep on the disk
    """

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self._main_fields()
        self._advanced()

    @property
    def defaults(self) -> list[Any]:
        """The fields that the WebUI's Settings > Defaults may hold."""
        return [self.preset, *(self.fields[name] for name in KEPT_AS_DEFAULTS)]

    @property
    def timed(self) -> list[Any]:
        """The fields, besides the effort, that a merge takes longer or shorter by."""
        ours = ("width", "height", "paths", "steps", "renoised", "method")
        options = [name for name in self.fields if name.startswith("option.") and name.endswith(_TIMED_OPTIONS)]
        return [*(self.fields[name] for name in (*ours, *options)), self.draw]

    def _main_fields(self) -> None:
        self.fields[EFFORT] = gr.Radio(
            [name.capitalize() for name in all_efforts()],
            value=_EFFORT.capitalize(),
            label="Effort",
            elem_id="loraclr_effort",
            tooltip="Layers merges layer by layer and needs no gradients; the others then refine what the model draws. "
            "Times are estimates: Check measures this computer anew, and every merge makes them better",
        )

    def _advanced(self) -> None:
        with gr.Accordion("How you prompt", open=False, elem_id="loraclr_prompts"):
            self._prompt_fields()
        with gr.Accordion("Output", open=False, elem_id="loraclr_output"), FormRow():
            self.fields["save_as"] = gr.Radio(
                [(label, name) for name, label in SAVED.items()],
                value=_DEFAULTS.save_as,
                label="Save as",
                elem_id="loraclr_save_as",
                tooltip="; ".join(f"{SAVED[name]}: {text}" for name, text in SAVE_AS.items()),
            )
            self.fields["precision"] = gr.Radio(
                list(PRECISIONS),
                value=_DEFAULTS.precision,
                label="Precision",
                elem_id="loraclr_precision",
                tooltip="Of the file; a checkpoint keeps its own",
            )
        with gr.Accordion("Advanced", open=False, elem_id="loraclr_advanced"):
            self.fields["method"] = gr.Radio(
                method_choices(),
                value=settings.value("loraclr_method"),
                label="Method",
                elem_id="loraclr_method",
                tooltip=f"What each does stands below; in requests: {', '.join(METHODS)}",
            )
            with FormRow():
                self.fields["rank"] = DropdownEditable(
                    choices=["auto", "full", "16", "32", "64", "128"],
                    value=_DEFAULTS.rank,
                    label="Rank",
                    elem_id="loraclr_rank",
                    min_width=90,
                    tooltip="How large the file may be: auto keeps the share beside it, full keeps everything, or a number",
                )
                tip = with_code("How much of the merge's effect rank auto keeps; 1 is all", "kept")
                self._number("kept", "Share of the effect", _DEFAULTS.kept, tip=tip, step=0.001)
            self.method_boxes = {name: self._method_options(name) for name in METHODS}
            self.compare = ComparingFields()
            self._recording_fields()

    def _method_options(self, name: str) -> gr.Column:
        """The options of one method, as its dataclass has them; shown while it is chosen."""
        items = [item for item in schema(METHODS[name].options) if item.name != EFFORT]
        with gr.Column(visible=name == settings.value("loraclr_method"), elem_id=f"loraclr_options_{name}") as box:
            gr.HTML(f"<p class='loraclr-small'>{html.escape(METHODS[name].summary)}</p>")
            for start in range(0, len(items), 3):
                with FormRow():
                    for item in items[start : start + 3]:
                        self.fields[option_field(name, item.name)] = _option(name, item)
        return box

    def _prompt_fields(self) -> None:
        preset, defaults = next(iter(TEMPLATES)), PromptOptions()
        self.preset = gr.Radio(
            [WAYS[name] for name in TEMPLATES],
            value=WAYS[preset],
            label="You write",
            elem_id="loraclr_preset",
            tooltip="Fills the fields below with what the model is asked while it is recorded",
        )
        chosen = PromptOptions.preset(preset)
        for name, label, lines, tip in (
            (
                "templates",
                "How you ask for a concept, one prompt per line",
                6,
                "{trigger} stands for its trigger words. In requests: templates",
            ),
            (
                "plain",
                "Prompts that call no concept, one per line",
                4,
                "They keep the merge from leaking into everything. In requests: plain",
            ),
        ):
            self.fields[name] = gr.Textbox(
                "\n".join(getattr(chosen, name)), label=label, lines=lines, elem_id=f"loraclr_{name}", tooltip=tip
            )
        with FormRow():
            self.fields["bank"] = gr.Radio(
                list(BANKS),
                value=next(iter(BANKS)),
                label="Words around them",
                elem_id="loraclr_bank",
                tooltip="A bank of phrases that prompts draw from, so that the merge works in other words too. In requests: bank",
            )
            self.fields["phrases"] = gr.Textbox(
                "",
                label="Words you use in prompts, one phrase per line",
                lines=2,
                elem_id="loraclr_phrases",
                tooltip="Added to the bank: places, clothing, styles, whatever you write beside the trigger words",
            )
        with FormRow():
            for name, label, tip in (
                ("quality", "Quality words", "Added to the end of every prompt"),
                ("negative", "Negative prompt", "Used at every step of what is recorded"),
                ("pair", "Two at once", "How the picture asks for two at once: {first}, {second}"),
            ):
                self.fields[name] = gr.Textbox(
                    getattr(defaults, name), label=label, elem_id=f"loraclr_{name}", tooltip=tip, max_lines=1
                )

    def _recording_fields(self) -> None:
        recording = _DEFAULTS.recording
        gr.HTML("<p class='loraclr-small'>What the model draws with each LoRA, for the merge to learn from.</p>")
        with FormRow():
            tip = with_code("Of each concept: the more, the better and the slower", "paths")
            self._slider("paths", "Pictures", recording.paths, (1, 400), tip=tip)
            tip = with_code("Sampling steps of each picture", "steps")
            self._slider("steps", "Steps of each", recording.steps, (2, 100), tip=tip)
        with FormRow():
            self._slider("guidance", "CFG scale", recording.guidance, (0, 30), tip="Of these pictures", step=0.5)
            tip = with_code("Points of each concept besides, on its finished pictures with fresh noise", "renoised")
            self._number("renoised", "With fresh noise", recording.renoised, tip=tip, precision=0)
        with FormRow():
            size_tip = "Of these pictures; 0 for the smallest sensible size that the LoRAs were trained at"
            self._slider("width", "Width", recording.width, (0, 2048), tip=size_tip, step=64)
            self._slider("height", "Height", recording.height, (0, 2048), tip=size_tip, step=64)
        with FormRow():
            tip = "The same seed gives the same file; -1 for another each time, which stands in the result"
            self._number("seed", "Seed", _DEFAULTS.seed, tip=tip, precision=0)
            budget = settings.value("loraclr_memory")
            self._number("memory_mb", "Memory (MB)", budget, tip="In RAM, for what is recorded", precision=0)
        self.draw = gr.Checkbox(
            bool(settings.value("loraclr_preview")),
            label="Draw pictures",
            elem_id="loraclr_draw",
            tooltip="To judge the merge by: each concept as base, alone, all tags, merged; and for the card",
        )
        self.work = WorkFields()

    def _slider(
        self, name: str, label: str, value: float, ends: tuple[float, float], *, tip: str, step: float = 1
    ) -> None:
        self.fields[name] = gr.Slider(
            *ends, value=value, step=step, label=label, elem_id=f"loraclr_{name}", min_width=160, tooltip=tip
        )

    def _number(self, name: str, label: str, value: float, *, tip: str = "", **arguments: Any) -> None:
        extra = {"tooltip": tip} if tip else {}
        self.fields[name] = gr.Number(value, label=label, elem_id=f"loraclr_{name}", min_width=90, **arguments, **extra)


def _option(method: str, item: Option) -> Any:
    """The component of one option."""
    common: dict[str, Any] = {
        "label": option_label(item),
        "elem_id": f"loraclr_{method}_{item.name}",
        "tooltip": with_code(item.help, item.name),
        "min_width": 90,
    }
    if item.type is bool:
        return gr.Checkbox(item.default, **common)
    if item.type is str:
        return gr.Dropdown(list(item.choices), value=item.default, **common)
    whole: Sequence[tuple[str, Any]] = [("precision", 0)] if item.type is int else [("step", 0.001)]
    # without the component's own bounds: gradio would refuse before anything of ours runs, and name nothing
    return gr.Number(item.default, **dict(whole), **common)
