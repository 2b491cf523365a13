"""What a merge did: one object, shown as a table, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..request import Concept, MergeRequest

#: least share of unseen points at which a concept is recognised -> what became of it. On the demo's checkpoint an independent
#: judge takes nearly every picture of what is kept for the concept, and hardly one of what is lost (docs/method.md)
VERDICTS = ((0.75, "kept"), (0.4, "weakened"), (0.0, "lost"))

#: most base drift -> what it is in words
_DRIFTS = ((0.15, "stay as they are"), (0.5, "change a little"), (1.0, "change visibly"), (math.inf, "change much"))


@dataclass(frozen=True)
class ConceptReport:
    """What a merge did to one concept.

    Attributes:
        name, trigger: of the concept
        all_tags: retention with every LoRA's tag in one prompt (the plain sum)
        merged: retention in the merge
        loss: the largest share of a layer's delta that was lost where it had no low rank of its own
        left_out: every key of its file that is not understood, and every layer that the model does not have
        recognised: share of unseen points at which the merge's prediction is nearer to this concept's own than to any other
            concept's and to that without it
        taken_for: whom it is taken for -> share; itself among them, and "" for nobody
        trigger_is_guess: whether nobody named the trigger words, and they may well be others
    """

    name: str
    trigger: str
    all_tags: float | None
    merged: float | None
    loss: float = 0.0
    left_out: tuple[str, ...] = ()
    recognised: float | None = None
    taken_for: Mapping[str, float] = field(default_factory=dict)
    trigger_is_guess: bool = False

    @property
    def called(self) -> str:
        """Its trigger words for a person to read."""
        return f"{self.trigger} (guessed)" if self.trigger_is_guess else self.trigger or "(none)"

    @property
    def verdict(self) -> str:
        """In a word what became of it: kept, weakened or lost; empty where nobody looked."""
        if self.recognised is None:
            return ""
        return next(word for least, word in VERDICTS if self.recognised >= least)

    @property
    def mistaken_for(self) -> str:
        """What it is taken for most often when it is not taken for itself; empty where it always is."""
        others = {name: share for name, share in self.taken_for.items() if name != self.name and share > 0}
        most = max(others, key=others.get, default=None)
        return "" if most is None else most or "nothing"


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        method, source: what merged, and the paper it comes from
        concepts: in the order of the request
        base_drift_all_tags, base_drift: of the sum and of the merge (docs/method.md)
        layers: how many layers the merge has
        rows: rows of inputs that were kept per layer and teacher
        rank: smallest, mean and largest rank
        kept: the least and the mean share of a layer's effect that its rank keeps
        refinement: how the refinement ended: reason, steps, its checks, how many samples it ran at a time, and whether it
            recomputed their activations; empty where there was none
        warnings: what a person should know
        together: left and right concept of a picture with two, and the share of unseen points at which both are themselves
    """

    method: str
    source: str
    concepts: tuple[ConceptReport, ...]
    base_drift_all_tags: float | None
    base_drift: float | None
    layers: int = 0
    rows: int = 0
    rank: tuple[int, float, int] = (0, 0.0, 0)
    kept: tuple[float, float] = (1.0, 1.0)
    refinement: Mapping[str, Any] = field(default_factory=dict)
    solver: Mapping[str, float] = field(default_factory=dict)
    together: tuple[tuple[str, str, float], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)

    def table(self) -> str:
        """A table for a terminal."""
        rows = [("concept", "trigger", "all tags", "merged", "recognised", "verdict")]
        rows += [
            (c.name, c.called, figure(c.all_tags), figure(c.merged), percent(c.recognised), c.verdict)
            for c in self.concepts
        ]
        if self.base_drift is not None or self.base_drift_all_tags is not None:
            rows.append(("base drift", "", figure(self.base_drift_all_tags), figure(self.base_drift), "", ""))
        return "\n".join([format_table(rows), *self.remarks()])

    def remarks(self) -> list[str]:
        """What to say of concepts that came out weak, and of pictures with two."""
        said = [
            f"{c.name} is {c.verdict}: where it is not recognised, {c.mistaken_for} is drawn most often."
            for c in self.concepts
            if c.verdict not in ("", VERDICTS[0][1])
        ]
        if self.together:
            both = sum(share for _, _, share in self.together) / len(self.together)
            said.append(f"Two in one picture: both are themselves at {both:.0%} of unseen points.")
        return said


def advice(report: MergeReport, request: MergeRequest) -> str:
    """What came out worst, and what to do about it, in a sentence or two; empty where nobody looked."""
    judged = [
        (told, concept)
        for told, concept in zip(report.concepts, request.concepts, strict=True)
        if told.recognised is not None
    ]
    if not judged:
        return ""
    worst, concept = min(judged, key=lambda pair: pair[0].recognised)
    if worst.verdict == VERDICTS[0][1]:
        return "Every concept is kept."
    instead = worst.mistaken_for
    drawn = f", and {instead} is drawn instead" if instead else ""
    alike = [told.name for told, _ in judged if told.verdict == worst.verdict]
    said = f"{worst.name} is {worst.verdict}: it"
    if len(alike) > 1:
        said = f"{', '.join(alike[:-1])} and {alike[-1]} are {worst.verdict}; {worst.name} the most: it"
    return (
        f"{said} is recognised in {percent(worst.recognised)} of what was tried{drawn}. "
        f"Merge again with {' or '.join(_remedies(worst, concept, request))}."
    )


def _remedies(worst: ConceptReport, concept: Concept, request: MergeRequest) -> list[str]:
    """What a person may try, the likeliest first."""
    rivals = {other.label for other in request.concepts} - {concept.label}
    remedies = []
    if worst.mistaken_for in rivals and concept.trigger:
        remedies.append(
            f"trigger words for {worst.name} that have nothing in common with those of {worst.mistaken_for}"
        )
    effort = request.options.get("effort", "balanced")
    if request.method == "contrastive" and effort != "thorough":
        remedies.append("effort thorough" if effort == "balanced" else "effort balanced")
    elif request.method != "contrastive":
        remedies.append("method contrastive")
    remedies.append(f"its importance at {2 * concept.importance:g}")
    if concept.kind == "subject" and worst.mistaken_for == "nothing":
        remedies.append("its kind set to style, if it is one")
    return remedies


def drift_in_words(drift: float | None) -> str:
    """How much prompts change that call no concept; as long as a LoRA changes its own prompts by 1."""
    if drift is None:
        return "not measured"
    return next(words for most, words in _DRIFTS if drift <= most)


def figure(value: float | None) -> str:
    """Three digits, or what stands for none."""
    return "n/a" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in percent, or what stands for none."""
    return "n/a" if value is None else f"{value:.0%}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first two left, figures right; a line under the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)
