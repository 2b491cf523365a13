"""What a merge would do, said before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modules import shared

from ...errors import LoraclrError
from ...hosts import running
from ...merge import Overlap, examine, memory_needs
from ...model import MEGABYTE, Host, free_on_card
from ...progress import PlannedStage, Stage
from ...recording import InputLora, example_prompts, load_input, served_layers
from ...request import MergeRequest
from ...solving import Procedure
from . import estimate, overlaps, pace, wording
from .adding import Base


@dataclass(frozen=True)
class Finding:
    """One concept: what it is, and what stands in the way, if anything does.

    Attributes:
        guessed: whether nothing names the trigger words
    """

    name: str
    trigger: str
    kind: str
    rank: int
    layers: int
    problem: str = ""
    warnings: tuple[str, ...] = ()
    guessed: bool = False


@dataclass(frozen=True)
class Check:
    """What a merge would do, and what it needs.

    Attributes:
        findings: per concept
        problems: what stands in the way of the whole
        warnings: what a person should know
        licences: found in the inputs' metadata, with the LoRAs that name them
        seconds: expected, per stage
        span: the least and the most seconds expected of the whole
        efforts: the same per effort
        size: of the pictures that are recorded, width and height
        ram_mb, device_mb, file_mb: expected, the file's at most
        checkpoint: on which it would run
        examples: some of the prompts that would be asked, by teacher; of two in one picture under an empty name
        added_to: the merged LoRA that it would go on from; empty for none
        steps: of the refinement, and of one that merges everything from nothing
        overlap: who will be in whose way; None where nobody asked or it was not measured, for which `overlap_note` has the reason
    """

    findings: tuple[Finding, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    licences: dict[str, tuple[str, ...]]
    seconds: dict[Stage, float]
    span: tuple[float, float]
    efforts: dict[str, tuple[float, float]]
    size: tuple[int, int]
    ram_mb: float
    device_mb: float
    file_mb: float
    checkpoint: str
    examples: dict[str, list[str]]
    added_to: str = ""
    steps: tuple[int, int] = (0, 0)
    overlap: Overlap | None = None
    overlap_note: str = ""

    @property
    def possible(self) -> bool:
        return not self.problems and not any(finding.problem for finding in self.findings)


def check(
    request: MergeRequest,
    names: Sequence[str],
    *,
    refused: Mapping[str, str] | None = None,
    draw: bool,
    with_overlap: bool = False,
    base: Base | None = None,
) -> Check:
    """Read the inputs as the merge would, one at a time, and say what it finds.

    Args:
        request: `lora` of each concept is a path
        names: the LoRAs' names
        refused: name -> reason, of LoRAs that were chosen too and are not in the request
        draw: whether a picture would be drawn
        with_overlap: whether the model is asked who will be in whose way, which takes about ten seconds
        base: a merged LoRA that it would go on from

    Raises:
        LoraclrError: nothing can be said, as no checkpoint is loaded or its kind cannot be merged
    """
    host = pace.probe(request, wait=True)
    request, key = pace.sized(request, host), pace.key_of(request, host)
    findings, inputs = _read(request, names, refused or {}, host)
    examination = examine(request, inputs, host, _serves(host) if inputs else None)
    problems = [_in_the_tabs_words(problem, request, names, host) for problem in examination.problems]
    warnings = [_in_the_tabs_words(warning, request, names, host) for warning in examination.warnings]
    if len(findings) == 1:
        warnings.append("Only one LoRA is chosen: the result is that LoRA at its weight.")
    start = base.start if base else None
    planned = estimate.stages(request, host, draw=draw, start=start)
    seconds = estimate.seconds(planned, key)
    refining = Stage.REFINING in seconds
    needs = memory_needs(request, inputs, host, refines=refining)
    shortage = _shortage(needs.device, host, refining=refining)
    if shortage:
        # what rank auto will choose, and so whether it will fit, is not known beforehand
        (warnings if request.rank == "auto" else problems).append(shortage)
    found = Check(
        tuple(findings),
        tuple(problems),
        tuple(warnings),
        _licences(names),
        seconds,
        estimate.span(sum(seconds.values()), key),
        estimate.efforts(request, host, draw=draw, start=start),
        (request.recording.width, request.recording.height),
        needs.ram,
        needs.device,
        needs.file,
        host.checkpoint,
        _examples(request, inputs),
        base.lora.name if base else "",
        _steps(request, planned),
    )
    if not (with_overlap and found.possible):
        return found
    overlap, note = overlaps.look(request, host, key)
    return replace(found, overlap=overlap, overlap_note=note)


def _read(
    request: MergeRequest, names: Sequence[str], refused: Mapping[str, str], host: Host
) -> tuple[list[Finding], list[InputLora]]:
    """What is found of each LoRA, and the shapes of those that can be merged."""
    findings, inputs = [], []
    for concept, name in zip(request.concepts, names, strict=True):
        found = _finding(concept, name, host)
        findings.append(found[0])
        inputs += found[1:]
    return [*findings, *(Finding(name, "", "", 0, 0, reason) for name, reason in refused.items())], inputs


def _finding(concept, name: str, host: Host) -> tuple[Finding, ...] | tuple[Finding, InputLora]:
    """What is found of one LoRA; and its shapes, if it can be merged. The card stays free for a generation."""
    try:
        given = load_input(concept, host, shapes_only=True)
    except LoraclrError as error:
        text = wording.plain(str(error), {concept.lora: name})
        return (Finding(name, concept.trigger, concept.kind, 0, 0, text),)
    rank = max((factors.rank for factors in given.deltas.values()), default=0)
    found, lora, warnings = given.concept, running.find_lora(name), given.warnings
    # a guess that the table has filled in comes back as if a person had typed it
    guessed = lora.trigger_is_guess and found.trigger == lora.trigger and not found.prompts
    if guessed and given.trigger is None:
        warnings += (lora.found_trigger.warning(name),)
    light = replace(given, file=given.file.without_layers())
    told = (name, found.trigger, found.kind, rank, len(given.deltas))
    return Finding(*told, warnings=warnings, guessed=guessed), light


def _steps(request: MergeRequest, planned: Sequence[PlannedStage]) -> tuple[int, int]:
    """Of the refinement as it is planned, and from nothing; 0 where there is none."""
    whole = Procedure.of(request).refinement(len(request.concepts))
    own = next((item.units for item in planned if item.stage is Stage.REFINING), 0)
    return own, whole.steps if whole else 0


#: prompts that are shown of each concept
_SHOWN = 4


def _examples(request: MergeRequest, inputs: Sequence[InputLora]) -> dict[str, list[str]]:
    """What would be asked; nothing where nothing could be."""
    if not inputs:
        return {}
    asked, beside = example_prompts(request, inputs, _SHOWN)
    return {**asked, "": beside} if beside else asked


#: checkpoint -> which recording serves each of its layers (`recording.served_layers`)
_served: dict[str, dict[str, str]] = {}


def _serves(host: Host) -> dict[str, str] | None:
    """Which recording serves each layer of the checkpoint; None where nobody can tell without waiting for a picture."""
    if host.checkpoint not in _served and not shared.state.job:
        with running.session(job="LoRACLR estimate") as opened:
            _served[opened.checkpoint] = served_layers(opened, list(opened.layers()))
    return _served.get(host.checkpoint)


def _in_the_tabs_words(said: str, request: MergeRequest, names: Sequence[str], host: Host) -> str:
    """A message of the core with the WebUI's names in place of paths, and the tab's fields in place of flags."""
    known = {concept.lora: name for concept, name in zip(request.concepts, names, strict=True)}
    return wording.plain(said, {**known, str(host.checkpoint_path): host.checkpoint})


def _shortage(needed_mb: float, host: Host, *, refining: bool) -> str | None:
    """What to do where the merge's factors and all that belongs to them are more than the card has room for."""
    free = free_on_card(host.device)
    if free is None or needed_mb * MEGABYTE <= free:
        return None
    remedy = "choose effort Layers, which needs less, a lower rank" if refining else "choose a lower rank"
    return (
        f"The graphics card has {free // MEGABYTE} MB free, and this merge may need {math.ceil(needed_mb)} MB and what a picture "
        f"needs: {remedy}, or merge fewer LoRAs at a time."
    )


def _licences(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        licence = running.find_lora(name).licence
        if licence:
            found[licence] = (*found.get(licence, ()), name)
    return found
