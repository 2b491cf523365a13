"""The merge, from top to bottom: request -> deltas -> recording -> method -> factors -> refinement -> retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import LoraclrError
from ..model import Host
from ..output import ConceptReport, Merge, MergeReport, require_copyable, require_places
from ..progress import Progress
from ..recording import bundled_embeddings, load_input, load_inputs
from ..refining import Refined, Retention
from ..request import MergeRequest, check_prompts, parse_lora_argument, parse_options
from ..solving import Method, find_method
from .stages import Job, MergedLayer


def merge_loras(request: MergeRequest, host: Host, progress: Progress | None = None) -> Merge:
    """Merge LoRAs on a loaded model.

    Args:
        request: what to merge and how; checked before a tensor is read
        host: holds the model; left as it was on success, error and interrupt
        progress: is told how far it is, and may interrupt

    Raises:
        LoraclrError: something in the request or the files that a person can mend
        Interrupted: the user asked to stop
    """
    progress = progress or Progress()
    request.check()
    if request.save_as == "checkpoint":
        require_copyable(host.checkpoint_path)
    method = find_method(request.method)
    options = parse_options(method.options, request.options, f"method {method.name}")
    inputs = load_inputs(request.concepts, host, progress)
    if request.save_as == "checkpoint":
        require_places(host.checkpoint_path, inputs)
    request = replace(request, concepts=tuple(given.concept for given in inputs))
    check_prompts(request.concepts, request.prompts)
    refinement = method.refinement(options, len(inputs))
    if refinement and (obstacle := host.refinement_obstacle()):
        raise LoraclrError(obstacle)
    with host.knowing(bundled_embeddings(inputs)) as unknown:
        # Sorted by content, so that the order in which the LoRAs were named changes nothing.
        ordered = sorted(inputs, key=lambda given: given.order)
        job = Job(request, ordered, host, progress, records=method.records)
        job.warnings += unknown
        lessons = job.learn_to_merge() if method.records else []
        layers = job.solve(method, options, lessons)
        refined = job.refine(layers, lessons, refinement) if refinement else None
        factors = job.rounded(refined.factors if refined else {key: layer.factors for key, layer in layers.items()})
        before, after = job.measure(factors)
    report = _report(request, job, method, layers, refined, (before, after))
    return Merge(request, factors, tuple(inputs), report)


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
    request = replace(request, concepts=tuple(given.concept for given in inputs))
    check_prompts(request.concepts, request.prompts)
    result = load_input(parse_lora_argument(merged), host).deltas if merged else None
    with host.knowing(bundled_embeddings(inputs)) as unknown:
        job = Job(request, inputs, host, progress, records=False)
        job.warnings += unknown
        before, after = job.measure(result)
    return MergeReport(
        method=merged or "all tags",
        source="docs/method.md",
        concepts=_concept_reports(request, job, before, after),
        base_drift_all_tags=before.base_drift,
        base_drift=after.base_drift if after else None,
        warnings=job.warnings,
    )


def _report(
    request: MergeRequest,
    job: Job,
    method: Method,
    layers: Mapping[str, MergedLayer],
    refined: Refined | None,
    retention: tuple[Retention, Retention],
) -> MergeReport:
    """The report on a finished merge."""
    before, after = retention
    # a vector's is always 1, and says nothing
    ranks = [f.rank for f in (layer.factors for layer in layers.values()) if f.shape[1] > 1] or [1]
    kept = [layer.kept for layer in layers.values()]
    names = sorted({name for layer in layers.values() for name in layer.notes})
    notes = {name: _mean([layer.notes[name] for layer in layers.values() if name in layer.notes]) for name in names}
    return MergeReport(
        method=method.name,
        source=method.source,
        concepts=_concept_reports(request, job, before, after),
        base_drift_all_tags=before.base_drift,
        base_drift=after.base_drift,
        layers=len(layers),
        rows=job.plan.rows if method.records else 0,
        rank=(min(ranks), _mean(ranks), max(ranks)),
        kept=(min(kept), _mean(kept)),
        refinement={"reason": refined.reason, "steps": refined.steps, "checks": refined.history} if refined else {},
        solver=notes,
        warnings=job.warnings,
    )


def _concept_reports(
    request: MergeRequest, job: Job, before: Retention, after: Retention | None
) -> tuple[ConceptReport, ...]:
    """The concepts' figures in the order of the request; the job has its own."""
    reports = []
    for concept in request.concepts:
        k = job.labels.index(concept.label)
        merged = after.concepts[k] if after else None
        given = job.inputs[k]
        told = (concept.label, concept.trigger, before.concepts[k], merged)
        reports.append(ConceptReport(*told, given.loss, given.left_out))
    return tuple(reports)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
