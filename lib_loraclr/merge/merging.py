"""The merge, from top to bottom: request -> deltas -> examination -> recording -> layers -> refinement -> retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..errors import LoraclrError
from ..files import LoraFile, WorkFolder, require_safetensors
from ..model import ALONE, Host, Processes
from ..output import ConceptReport, Merge, MergeReport, Target
from ..progress import Progress
from ..recording import (
    InputLora,
    bundled_embeddings,
    load_input,
    load_inputs,
    recorded_clip_skip,
    served_layers,
    with_size,
)
from ..refining import Recognition, Refined, Retention
from ..request import MergeRequest, parse_lora_argument
from ..solving import MergedLayer, Procedure
from .examination import examine, merged_keys
from .followed import Followed
from .stages import Stages
from .start import Finished, Start, ordered
from .watching import watching


def merge_loras(
    request: MergeRequest,
    host: Host,
    progress: Progress | None = None,
    *,
    start: Start | None = None,
    work: WorkFolder | None = None,
    followed: Followed | None = None,
    processes: Processes = ALONE,
) -> Merge:
    """Merge LoRAs on a loaded model.

    Args:
        request: what to merge and how; checked before a tensor is read
        host: holds the model; left as it was on success, error and interrupt
        progress: is told how far it is, and may interrupt
        start: a finished merge of all these concepts, or of some of them, to go on from; or several, to be joined
        work: where what is computed is kept while it runs; a merge that was ended, by whatever, goes on from there
        followed: what a former merge recorded of the same LoRAs; filled with what this one records
        processes: that do it together, each of which calls this with the same request and a host of its own

    Raises:
        LoraclrError: something in the request or the files that a person can mend
        Interrupted: the user asked to stop
    """
    with processes.failing():
        return _merged(request, host, watching(progress or Progress(), processes), start, work, followed, processes)


def _merged(
    request: MergeRequest,
    host: Host,
    progress: Progress,
    start: Start | None,
    work: WorkFolder | None,
    followed: Followed | None,
    processes: Processes,
) -> Merge:
    """As `merge_loras`."""
    request.check()
    procedure = Procedure.of(request)
    inputs = load_inputs(request.concepts, host, progress)
    request = completed(request, inputs, host)
    serves = served_layers(host, merged_keys(inputs)) if procedure.method.records else None
    examination = examine(request, inputs, host, serves)
    examination.require_possible()
    skip, _ = recorded_clip_skip(request.recording.clip_skip, inputs, host)
    with host.knowing(bundled_embeddings(inputs)) as unknown, host.skipping(skip):
        order = ordered(inputs, start)
        stages = Stages(request, order, host, serves, progress, start=start, work=work, processes=processes)
        stages.go_by(followed)
        progress.plan(stages.plan(procedure))
        layers, refined = stages.run(procedure)
        factors = stages.rounded({key: layer.factors for key, layer in layers.items()})
        before, after, recognition = stages.measure(factors)
        target = Target.of(host, factors)
    report = _report(procedure, layers, refined, rows=stages.memory.rows if procedure.method.records else 0)
    report = replace(
        report,
        concepts=_concept_reports(inputs, stages, before, after, recognition),
        together=_together(stages, recognition),
        base_drift_all_tags=before.base_drift,
        base_drift=after.base_drift,
        warnings=(*_own_warnings(inputs), *examination.warnings, *stages.warnings, *stages.trouble, *unknown),
    )
    return Merge(request, factors, tuple(inputs), target, report, start.begun(order) if start else None)


def refine_further(
    merge: Merge,
    host: Host,
    progress: Progress | None = None,
    *,
    steps: int = 0,
    work: WorkFolder | None = None,
    followed: Followed | None = None,
) -> Merge:
    """A finished merge, kept or not, refined for some more steps; a merge of its own, and the first one stays as it is.

    What the LoRAs predict is recorded again, or found where what the merge `followed` or its `work` folder is given, which leaves
    little but the steps to be done; and it is measured on the same points as before, so that both reports compare.

    Args:
        merge: as `merge_loras` or this made it; `Merge.light` is enough
        host: holds the checkpoint that it was made on
        progress: as of `merge_loras`
        steps: at the model's output; 0: a third of what the merge itself took
        work, followed: as of `merge_loras`

    Raises:
        LoraclrError: another checkpoint is loaded, a LoRA is gone or was changed since, or the method does not refine; and as
            `merge_loras`
        Interrupted: the user asked to stop
    """
    # not by what the host calls it: the WebUI adds a hash to a name once it has one
    if host.checkpoint_path != merge.target.path:
        raise LoraclrError(
            f"The merge was made on {merge.target.checkpoint}, and {host.checkpoint} is loaded: load that one to go on."
        )
    for lora in merge.inputs:
        require_safetensors(lora.file.path)
        if LoraFile(lora.file.path, {}, {}).hash != lora.file.hash:
            raise LoraclrError(f"{lora.concept.lora} was changed since it was merged: merge afresh.")
    labels = frozenset(concept.label for concept in merge.request.concepts)
    first = merge.begun.concepts if merge.begun else ()
    start = Start((Finished(merge.factors, labels, first),), steps)
    return merge_loras(merge.request, host, progress, start=start, work=work, followed=followed)


def measure_loras(
    request: MergeRequest, host: Host, merged: str | None = None, progress: Progress | None = None
) -> MergeReport:
    """Retention of every concept with all tags in one prompt, and in a merged file made by any program.

    Args:
        request: the concepts and the prompts to measure on; its method is not used
        merged: path of a LoRA that is meant to hold them all, with a weight as in a prompt if need be; None: measure all
            tags alone

    Raises:
        LoraclrError: as `merge_loras`
        Interrupted: the user asked to stop
    """
    progress = progress or Progress()
    request.check()
    inputs = load_inputs(request.concepts, host, progress)
    request = replace(completed(request, inputs, host), method="weighted_sum", options={})
    examination = examine(request, inputs, host)
    examination.require_possible()
    result = load_input(parse_lora_argument(merged), host).deltas if merged else None
    skip, _ = recorded_clip_skip(request.recording.clip_skip, inputs, host)
    with host.knowing(bundled_embeddings(inputs)) as unknown, host.skipping(skip):
        stages = Stages(request, inputs, host, None, progress)
        before, after, recognition = stages.measure(result)
    return MergeReport(
        method=merged or "all tags",
        source="docs/method.md",
        concepts=_concept_reports(inputs, stages, before, after, recognition),
        together=_together(stages, recognition),
        base_drift_all_tags=before.base_drift,
        base_drift=after.base_drift if after else None,
        warnings=(*_own_warnings(inputs), *examination.warnings, *unknown),
    )


def completed(request: MergeRequest, inputs: Sequence[InputLora], host: Host) -> MergeRequest:
    """With what the files say where the request says nothing: trigger words, and the size of the pictures."""
    recording = with_size(request.recording, [lora.file.metadata for lora in inputs], host.default_size)
    return replace(request, concepts=tuple(lora.concept for lora in inputs), recording=recording)


def _report(
    procedure: Procedure, layers: Mapping[str, MergedLayer], refined: Refined | None, *, rows: int
) -> MergeReport:
    """What there is to say of the layers and the refinement of a finished merge."""
    ranks, kept = ranks_of(layers), [layer.kept for layer in layers.values()]
    return MergeReport(
        method=procedure.method.name,
        source=procedure.method.source,
        concepts=(),
        base_drift_all_tags=None,
        base_drift=None,
        layers=len(layers),
        rows=rows,
        rank=(min(ranks), mean(ranks), max(ranks)),
        kept=(min(kept), mean(kept)),
        refinement=_of_refinement(refined) if refined else {},
        solver=notes_of(layers),
    )


def ranks_of(layers: Mapping[str, MergedLayer]) -> list[int]:
    """The layers' ranks; a vector's is always 1, and says nothing."""
    return [f.rank for f in (layer.factors for layer in layers.values()) if f.shape[1] > 1] or [1]


def notes_of(layers: Mapping[str, MergedLayer]) -> dict[str, float]:
    """The method's figures, each the mean over the layers that have it."""
    names = sorted({name for layer in layers.values() for name in layer.notes})
    return {name: mean([layer.notes[name] for layer in layers.values() if name in layer.notes]) for name in names}


def mean(values: Sequence[float]) -> float:
    """Of one value at least."""
    return sum(values) / len(values)


def _of_refinement(refined: Refined) -> dict[str, Any]:
    """How a refinement ended, and in what portions its samples were run."""
    told = {"reason": refined.reason, "steps": refined.steps, "checks": refined.history}
    return {**told, **(asdict(refined.fit) if refined.fit else {})}


def _concept_reports(
    inputs: Sequence[InputLora],
    stages: Stages,
    before: Retention,
    after: Retention | None,
    recognition: Recognition | None,
) -> tuple[ConceptReport, ...]:
    """The concepts' figures in the order of the request; the stages have their own."""
    reports = []
    for lora in inputs:
        k = stages.labels.index(lora.concept.label)
        merged = after.concepts[k] if after else None
        told = (lora.concept.label, lora.concept.trigger, before.concepts[k], merged)
        taken = recognition.taken_for.get(k, {}) if recognition else {}
        names = {"" if j is None else stages.labels[j]: share for j, share in taken.items()}
        recognised = recognition.recognised(k) if recognition else None
        reports.append(ConceptReport(*told, lora.loss, lora.left_out, recognised, names, lora.trigger_is_guess))
    return tuple(reports)


def _together(stages: Stages, recognition: Recognition | None) -> tuple[tuple[str, str, float], ...]:
    pairs = recognition.together.items() if recognition else ()
    return tuple((stages.labels[a], stages.labels[b], share) for (a, b), share in pairs)


def _own_warnings(inputs: Sequence[InputLora]) -> list[str]:
    return [warning for lora in inputs for warning in lora.warnings]
