"""Refine further: a job that goes on from a result which nobody has kept yet."""

from __future__ import annotations

from dataclasses import replace

from ...errors import LoraclrError
from ...request import MergeRequest, parse_number
from ...solving import Procedure
from . import jobs
from .rows import Table


def job_of(before: jobs.Job, table: Table, steps: float | None, *, draw: bool, task: str) -> jobs.Job:
    """The job, with the importance that the rows have now.

    Args:
        before: whose result it goes on from
        table: the rows; of LoRAs that are not in the result nothing is taken
        steps: at the model's output; 0 for as many as are usual
        draw: whether pictures are drawn
        task: of the tab

    Raises:
        LoraclrError: there is no result, its method or effort does not refine, or a number that is none
    """
    held = before.result
    if held is None:
        raise LoraclrError(f"There is no result to go on from: the merge is {before.state}.")
    number = parse_number(steps, f"The number of steps is {steps!r}", whole=True)
    if number < 0:
        raise LoraclrError(f"The number of steps is {number}: give 0 for as many as are usual, or more.")
    request = _weighed(held.merge.request, before.names, table)
    if Procedure.of(request).refinement(len(request.concepts)) is None:
        raise LoraclrError(
            "This result was merged without refining: merge with effort Fast, Balanced or Thorough first."
        )
    return jobs.Job(
        request,
        before.names,
        draw,
        task,
        before.owner,
        form=before.form,
        former=held,
        steps=number,
        other=before.id,
    )


def _weighed(request: MergeRequest, names: tuple[str, ...], table: Table) -> MergeRequest:
    """The request with the rows' importance."""
    rows = {row.lora: row for row in table.rows}
    concepts = [
        replace(concept, importance=float(parse_number(rows[name]["importance"], f"The importance of {name}")))
        if name in rows
        else concept
        for concept, name in zip(request.concepts, names, strict=True)
    ]
    weighed = replace(request, concepts=tuple(concepts))
    weighed.check()
    return weighed
