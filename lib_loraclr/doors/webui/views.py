"""What is shown of a check and of a result: HTML by hand, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...hosts.running import InstalledCheckpoint
from ...output import ConceptReport, MergeReport, advice, drift_in_words, figure, percent
from ...solving import METHODS
from . import overlaps, working
from .notes import error, note, safe, span, warned

if TYPE_CHECKING:
    from .check import Check, Finding
    from .job import Job

# -- check


def check_view(check: Check) -> str:
    """What a merge would do."""
    warnings = [*check.warnings, *(w for finding in check.findings for w in finding.warnings)]
    style = " loraclr-doubt" if check.possible and warnings else "" if check.possible else " loraclr-error"
    parts = [
        f"<div class='loraclr-note{style}' role='status'><b>{_verdict_of(check, len(warnings))}</b> "
        f"Checkpoint: {safe(check.checkpoint)}.</div>"
    ]
    if check.added_to:
        own, whole = check.steps
        steps = f"{own} steps in place of {whole}" if own < whole else f"as many steps as from nothing, {whole}"
        parts.append(note(f"Goes on from {check.added_to}: {steps}."))
    parts += [error(problem) for problem in check.problems]
    parts.append(warned(warnings))
    rows = "".join(_finding(finding) for finding in check.findings)
    head = "<tr><th>Concept</th><th>Trigger words</th><th>Kind</th><th>Rank</th><th>Layers</th></tr>"
    parts.append(f"<table class='loraclr-table'><thead>{head}</thead><tbody>{rows}</tbody></table>")
    parts.append(overlaps.view(check.overlap, check.overlap_note))
    parts.append(_needs(check))
    parts.append(_examples(check.examples))
    licences = [f"{licence} ({', '.join(names)})" for licence, names in check.licences.items()]
    told = (
        "; ".join(licences)
        if licences
        else "none is named in the files; ask their authors before you publish the merge"
    )
    parts.append(f"<p class='loraclr-small'>Licences: {safe(told)}.</p>")
    return f"<div class='loraclr-result'>{''.join(parts)}</div>"


def _verdict_of(check: Check, doubts: int) -> str:
    if not check.possible:
        return "This cannot be merged as it is."
    return f"Ready to merge, but look at {'these' if doubts > 1 else 'this'} first:" if doubts else "Ready to merge."


def _finding(finding: Finding) -> str:
    if finding.problem:
        return f"<tr class='loraclr-bad'><td>{safe(finding.name)}</td><td colspan='4'>{safe(finding.problem)}</td></tr>"
    words = f"{finding.trigger} (guessed)" if finding.guessed else finding.trigger or "(none: acts on everything)"
    cells = [finding.name, words, finding.kind, finding.rank, finding.layers]
    return f"<tr>{''.join(f'<td>{safe(cell)}</td>' for cell in cells)}</tr>"


def _examples(asked: Mapping[str, Sequence[str]]) -> str:
    """What will be asked of the model, folded."""
    if not asked:
        return ""
    groups = "".join(
        f"<dt>{safe(name or 'two in one picture')}</dt>{''.join(f'<dd>{safe(prompt)}</dd>' for prompt in prompts)}"
        for name, prompts in asked.items()
    )
    return (
        "<details class='loraclr-examples'><summary>Examples of what will be asked</summary>"
        f"<dl>{groups}</dl></details>"
    )


def _needs(check: Check) -> str:
    width, height = check.size
    facts = [
        (
            "Time",
            span(*check.span),
            "From a measurement made just now, and from merges before; it is set right by each",
        ),
        (
            "Pictures",
            f"{width}×{height}",
            "Of this size the model is asked for: as the LoRAs were trained, unless you say another under Advanced",
        ),
        ("RAM", _megabytes(check.ram_mb), "Beside the WebUI's own; the memory budget is under Advanced"),
    ]
    if check.device_mb:
        needed = f"{_megabytes(check.device_mb)} beside the checkpoint, and what pictures need"
        facts.append(("Graphics memory", needed, "For the LoRAs that are merged"))
    facts.append(("File", f"up to {_megabytes(check.file_mb)}", "The rank decides; rank auto mostly stays below this"))
    return _facts(facts)


# -- result


def result_view(job: Job) -> str:
    """What became of each concept, and what else a person decides by."""
    report, size = job.result.merge.report, job.result.size
    before = {c.name: c.recognised for c in job.former.merge.report.concepts} if job.former else {}
    smallest, mean, largest = report.rank
    facts = [
        (
            "Pictures without a trigger",
            drift_in_words(report.base_drift),
            f"How much prompts change that call no concept (base drift {figure(report.base_drift)}; with all tags "
            f"{figure(report.base_drift_all_tags)}; 0 is not at all)",
        ),
        (
            "Rank",
            f"{smallest}" if smallest == largest else f"{smallest} to {largest} (mean {mean:.0f})",
            "Of the layers in the file",
        ),
        ("Layers", str(report.layers), "How many of the checkpoint's layers the file changes"),
        ("File", _megabytes(size / (1 << 20)), "Size of the file that Keep writes"),
        *([("Went on from", job.went_on_from, _before(job))] if job.went_on_from else []),
        ("Seed", str(job.request.seed), "Of all that was drawn: with it the same merge gives the same file"),
        ("Method", METHODS[report.method].label if report.method in METHODS else report.method, report.source),
    ]
    return (
        "<div class='loraclr-result'>"
        f"<div class='loraclr-heading'>What is left of each concept</div>{_table(report.concepts, before)}"
        f"{_together(report)}{_facts(facts)}"
        f"{warned(report.warnings)}</div>"
    )


def _before(job: Job) -> str:
    """What was in the merged LoRA that a job went on from."""
    merge = job.result.merge
    steps = merge.report.refinement.get("steps", 0)
    return f"It held {', '.join(merge.begun.concepts)}; {steps} steps were made from there"


def advice_view(job: Job) -> str:
    """What to do about the concept that came out worst, beside the button that would keep it."""
    merge = job.result.merge
    said = advice(merge.report, merge.request)
    verdicts = [concept.verdict for concept in merge.report.concepts]
    worst = next((word for word in ("lost", "weakened") if word in verdicts), "kept")
    if not said:
        return ""
    return f"<div class='loraclr-note loraclr-advice loraclr-{worst}' role='status'>{safe(said)}</div>"


def _table(concepts: Sequence[ConceptReport], before: Mapping[str, float | None]) -> str:
    """What became of each concept.

    Args:
        before: concept -> how often it was recognised before it was refined further; empty where there is no before
    """
    retention = "1 is as its own LoRA makes it, 0 as if it were not there"
    head = (
        "<tr><th>Concept</th><th>Trigger words</th><th></th><th title='Share of prompts and seeds that the merge never saw at "
        "which this concept is drawn, and no other'>Recognised</th>"
        f"{'<th title=before&#32;it&#32;was&#32;refined&#32;further>Before</th>' if before else ''}"
        f"<th title='How near it is to what its own LoRA draws: {retention}'>Retention</th>"
        f"<th title='Retention with every tag in one prompt: {retention}'>All tags</th></tr>"
    )
    rows = "".join(
        f"<tr><td>{safe(c.name)}</td><td>{safe(c.trigger or '(none)')}</td>"
        f"<td class='loraclr-{safe(c.verdict or 'unknown')}'>{_verdict(c)}</td><td>{_share(c.recognised)}</td>"
        f"{f'<td>{percent(before.get(c.name))}</td>' if before else ''}"
        f"<td>{figure(c.merged)}</td><td>{figure(c.all_tags)}</td></tr>"
        for c in concepts
    )
    return f"<div class='loraclr-wide'><table class='loraclr-table'><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _share(value: float | None) -> str:
    """A share as a bar with its figure."""
    if value is None:
        return percent(None)
    width = 100 * max(0.0, min(1.0, value))
    return (
        f"<span class='loraclr-share'><b>{percent(value)}</b>"
        f"<span class='loraclr-track' aria-hidden='true'><i style='width:{width:.0f}%'></i></span></span>"
    )


def _verdict(concept: ConceptReport) -> str:
    instead = (
        f": {concept.mistaken_for} instead" if concept.verdict not in ("", "kept") and concept.mistaken_for else ""
    )
    return safe(concept.verdict + instead)


def _together(report: MergeReport) -> str:
    """Who goes with whom in one picture: the left one's row, the right one's column."""
    if not report.together:
        return ""
    shares = {(left, right): share for left, right, share in report.together}
    names = [c.name for c in report.concepts if any(c.name in pair for pair in shares)]
    head = "".join(f"<th>{safe(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{safe(left)}</th>"
        + "".join(f"<td>{percent(shares[left, right]) if (left, right) in shares else ''}</td>" for right in names)
        + "</tr>"
        for left in names
    )
    return (
        "<div class='loraclr-heading'>Two in one picture <span class='loraclr-small'>how often both are themselves, the row's "
        "concept on the left</span></div>"
        f"<div class='loraclr-wide'><table class='loraclr-table loraclr-together'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def interrupted_view(*, goes_on: bool = True) -> str:
    """After a merge or a comparison was interrupted.

    Args:
        goes_on: whether what it recorded is kept on the disk, where that is switched on
    """
    kept = goes_on and working.is_on()
    later = " What was recorded is still there: the same merge, begun again, goes on from it." if kept else ""
    return note(f"Interrupted. Nothing was kept, and everything is as it was.{later}")


def work_view(size: int, limit_mb: int) -> str:
    """What merges keep on the disk.

    Args:
        size: in bytes
    """
    held = f"Recorded by merges, kept on the disk: {_megabytes(size / (1 << 20)) if size else 'nothing'}"
    most = f" of at most {_megabytes(limit_mb)}" if limit_mb > 0 else "; nothing is added (Settings > LoRACLR)"
    return f"<p class='loraclr-small'>{held}{most}.</p>"


def unloaded_view(job: Job) -> str:
    """After Reload UI stopped a merge or a comparison."""
    names = ", ".join(job.names)
    what, button = ("comparison", "Compare methods, under Advanced,") if job.compares else ("merge", "Merge")
    begun = "and it goes on from what was recorded" if working.is_on() and not job.compares else "to begin anew"
    again = f" What it was asked for is filled in again: press {button} {begun}." if job.form else ""
    return note(f"The {what} of {names} was stopped by Reload UI, and nothing was kept.{again}")


def kept_view(job: Job) -> str:
    """After Keep."""
    if isinstance(job.kept, InstalledCheckpoint):
        return note(
            f"Kept as checkpoint {job.kept.name}. Choose it at the top left; the trigger words call the concepts, no tag does."
        )
    return note(f"Kept as {job.kept.name}. Use it in any prompt as {tag(job)} together with the trigger words.")


def tag(job: Job) -> str:
    """What a prompt names it by; a checkpoint needs nothing."""
    if isinstance(job.kept, InstalledCheckpoint):
        return ""
    return f"<lora:{job.kept.alias}:1>"


def triggers(job: Job) -> list[str]:
    return list(dict.fromkeys(concept.trigger for concept in job.request.concepts if concept.trigger))


def _facts(facts: Sequence[tuple[str, str, str]]) -> str:
    """Names, values, and what they mean, as tooltips."""
    items = "".join(
        f"<div title='{safe(tip)}'><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value, tip in facts
    )
    return f"<dl class='loraclr-facts'>{items}</dl>"


def _megabytes(size: float) -> str:
    return f"{size / 1024:.1f} GB" if size >= 1024 else f"{size:.1f} MB" if size < 10 else f"{size:.0f} MB"
