"""Try a prompt on a result before it is kept, by itself or beside what it could be compared with. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from ...errors import LoraclrError
from ...hosts import running
from ...model import Deltas, Host, together
from ...output import Drawing, Merge, Trial, draw_trial
from ...progress import Stage
from ...recording import bundled_embeddings, load_input, load_inputs, recorded_clip_skip
from ...request import LARGEST_SEED, Concept, concept_prompts, drawn_seed, parse_number
from . import inline, jobs, wording
from .catalogue import require_fitting
from .notes import note, safe
from .start import is_closing
from .trial_fields import ALL_TAGS, BASE, FIELDS, NOTHING


@dataclass(frozen=True)
class Tried:
    """Pictures of a trial.

    Attributes:
        trial: what was asked
        merged: with the result, one a seed
        against: what it is compared with; empty for nothing
        others: with that, of the same seeds
    """

    trial: Trial
    merged: list[Image]
    against: str = ""
    others: list[Image] | None = None


class _Progress(running.StateProgress):
    """The WebUI's bar, stopped by the tab's own Interrupt and by the WebUI's end."""

    def __init__(self, task: str) -> None:
        super().__init__({Stage.DRAWING: 1.0})
        self._task = task

    def interrupted(self) -> bool:
        return jobs.is_stopped(self._task) or is_closing()


def asked(values: dict[str, Any], proposed: str) -> Trial:
    """What stands in the tab's fields as a trial.

    Args:
        values: by `trial_fields.FIELDS`
        proposed: the prompt where none was written

    Raises:
        LoraclrError: a field that is empty, of the wrong type, or out of range
    """

    def number(name: str, label: str, *, whole: bool = True) -> Any:
        return parse_number(values[name], f"The {label} is {values[name]!r}", whole=whole)

    drawing = Drawing(
        number("height", "height"),
        number("width", "width"),
        number("steps", "number of steps"),
        number("guidance", "CFG scale", whole=False),
        values["negative"].strip(),
    )
    pictures, seed = number("pictures", "number of pictures"), drawn_seed(number("seed", "seed"))
    return Trial.of(values["prompt"].strip() or proposed, min(seed, LARGEST_SEED - pictures), pictures, drawing)


def proposed_prompt(merge: Merge) -> str:
    """What is tried where nobody has written a prompt: the first concept."""
    return concept_prompts(merge.request.concepts[0], merge.request.prompts)[0]


def attempt(task: str, job: jobs.Job, values: dict[str, Any]) -> Tried:
    """Draw; the caller holds the WebUI's queue.

    Raises:
        LoraclrError: a person can mend it
        Interrupted: the user asked to stop
    """
    held = job.result
    if held is None:
        raise LoraclrError(f"There is no result to try: the merge is {job.state}. In txt2img a kept one can be tried.")
    merge, against = held.merge, values["against"] or NOTHING
    trial = asked(values, proposed_prompt(merge))
    with running.session(lock_held=True) as host:
        if host.checkpoint_path != merge.target.path:
            raise LoraclrError(
                f"The merge was made on {merge.target.checkpoint}, and {host.checkpoint} is chosen: choose the former to try it."
            )
        models: list[Deltas] = [{key: factors.to(host.device) for key, factors in merge.factors.items()}]
        models += _compared(against, merge, host)
        skip, _ = recorded_clip_skip(merge.request.recording.clip_skip, merge.inputs, host)
        with host.knowing(bundled_embeddings(merge.inputs)), host.skipping(skip):
            drawn = draw_trial(trial, models, host, _Progress(task))
    return Tried(trial, drawn[0], against, drawn[1]) if len(drawn) > 1 else Tried(trial, drawn[0])


def _compared(against: str, merge: Merge, host: Host) -> list[Deltas]:
    """What a result is compared with: nothing, the base model, all tags in one prompt, or another LoRA at weight 1."""
    if against == NOTHING:
        return []
    if against == BASE:
        return [{}]
    if against == ALL_TAGS:
        return [together([lora.deltas for lora in load_inputs(merge.request.concepts, host)])]
    lora = running.find_lora(against)
    require_fitting(lora)
    return [load_input(Concept(str(lora.path)), host).deltas]


def view(tried: Tried) -> str:
    """The pictures; two of a seed lie on each other, with a slider between them."""
    figures = []
    others = tried.others or [None] * len(tried.merged)
    for seed, merged, other in zip(tried.trial.seeds, tried.merged, others, strict=True):
        shown = _slider(merged, other, tried.against) if other else _picture(merged, f"seed {seed}")
        figures.append(f"<figure>{shown}<figcaption>seed {seed}</figcaption></figure>")
    drawing = tried.trial.drawing
    how = f"{drawing.width}×{drawing.height}, DDIM, {drawing.steps} steps, CFG {drawing.guidance:g}"
    beside = f" Left: the merge; right: {safe(tried.against)}." if tried.others else ""
    return (
        f"<div class='loraclr-shots'>{''.join(figures)}</div>"
        f"<p class='loraclr-small'>{safe(tried.trial.prompt)} ({safe(how)}).{beside}</p>"
    )


def _slider(merged: Image, other: Image, against: str) -> str:
    tip = "Drag to compare"
    return (
        f"<div class='loraclr-ab' title='{tip}'>{_picture(other, against)}{_picture(merged, 'the merge')}"
        f"<input type='range' min='0' max='100' value='50' aria-label='{tip}'></div>"
    )


def _picture(picture: Image, alt: str) -> str:
    return inline.image(inline.jpeg(picture), alt)


def named(values: list[Any]) -> dict[str, Any]:
    """The fields' values by their names."""
    return dict(zip(FIELDS, values, strict=True))


def interrupted() -> str:
    return note("Interrupted. No picture was drawn; the result is still there.")


def failed(error: BaseException, job: jobs.Job | None) -> str:
    """What to say of an error, in the tab's words."""
    if wording.of_memory(error):
        return "The memory ran out: draw smaller pictures, or fewer. The result is still there."
    text = str(error) if isinstance(error, LoraclrError) else f"{type(error).__name__}: {error}"
    return wording.plain(text, job.called if job else None)
