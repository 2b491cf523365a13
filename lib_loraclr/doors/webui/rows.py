"""One row per concept: an HTML table that the browser edits and javascript/loraclr.js reads back as JSON.

gradio has no table of pictures, numbers and texts; two dozen hidden rows of its components would slow the page for everybody.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ...errors import LoraclrError
from ...hosts.running import InstalledLora, find_lora
from ...request import KINDS, Concept, MergeRequest, parse_number
from .catalogue import is_merged, name_of, obstacle, preview_url
from .notes import safe

#: fields that are written one per line
_LINES = ("prompts", "outfits", "applied_to")
#: what a row has of a concept, and what stands there before anybody writes in it
_FIELDS = {item.name: item.default for item in fields(Concept) if item.name != "lora"}
_NUMBERS = {"te_weight": "text encoder weight", "unet_weight": "UNet weight", "importance": "importance"}
_TIPS = {
    "te_weight": "Strength, as in <lora:name:weight>; on the text encoder alone where there are two",
    "unet_weight": "Strength on the UNet alone, as in <lora:name:te:unet>",
    "trigger": "The words that call this concept in a prompt",
    "kind": "A subject is called by its trigger words; a style changes everything it is applied to",
    "importance": "How much this concept's errors count while merging; it is not the weight",
    "alone": "Whether it is taught in pictures that show it beside another concept",
    "prompts": "Record this concept on these prompts instead of the templates, one per line",
    "outfits": "Other trigger words that call this concept too, as in another outfit: each set is taught as much as the first",
    "applied_to": "The subjects that this style is taught on; in prompts its trigger words call it",
}


@dataclass(frozen=True)
class Row:
    """A concept as the table has it.

    Attributes:
        lora: the installed name
        typed: field of `Concept` -> what stands in it; what is not there is as `Concept` has it by default
    """

    lora: str
    typed: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """What stands in a field."""
        return self.typed.get(name, "" if name in (*_LINES, "trigger") else _FIELDS[name])

    def weighted(self, other: Row) -> Row:
        """With the weights of another row."""
        return Row(self.lora, {**self.typed, **{name: other[name] for name in ("te_weight", "unet_weight")}})

    def concept(self, lora: InstalledLora) -> Concept:
        """The concept that the row describes.

        Raises:
            LoraclrError: a number that is none
        """
        values: dict[str, Any] = {"trigger": str(self["trigger"]).strip(), "kind": self["kind"]}
        values["alone"] = bool(self["alone"])
        for name in _LINES:
            values[name] = tuple(line.strip() for line in str(self[name]).splitlines() if line.strip())
        # what stands in a field that the row's kind does not show
        values |= {"applied_to": ()} if self["kind"] != "style" else {"outfits": ()}
        for name, label in _NUMBERS.items():
            values[name] = float(parse_number(self[name], f"The {label} of {self.lora} is {self[name]!r}"))
        return Concept(str(lora.path), **values)


@dataclass(frozen=True)
class Table:
    """The rows, and what was taken over from a prompt.

    Attributes:
        rows: in their order
        taken: which take-over from a prompt they have seen; empty for none
        words: the other words of that prompt
    """

    rows: tuple[Row, ...] = ()
    taken: str = ""
    words: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Table:
        """From the browser's JSON; what is not of that form is no table."""
        try:
            values = json.loads(text or "{}")
            rows = tuple(_parsed(row) for row in values.get("rows", ()))
        except (ValueError, TypeError, AttributeError, KeyError):
            return cls()
        return cls(rows, str(values.get("taken", "")), str(values.get("words", "")))

    def dump(self) -> str:
        rows = [{"lora": row.lora, **row.typed} for row in self.rows]
        return json.dumps({"taken": self.taken, "words": self.words, "rows": rows})


def _parsed(values: Mapping[str, Any]) -> Row:
    typed = dict(values)
    lora = typed.pop("lora")
    if not typed.keys() <= _FIELDS.keys():
        raise ValueError(f"no such field among {sorted(typed)}")
    return Row(lora, typed)


def selected(names: Sequence[str], shown: Table, taken: Table) -> Table:
    """The rows for a selection: what the person typed stays, what was taken over from a prompt comes once, others are new.

    Of a LoRA that has a row already a prompt's weights are taken over, and nothing else.
    """
    known = {row.lora: row for row in shown.rows}
    if taken.taken != shown.taken:
        for row in taken.rows:
            known[row.lora] = known.get(row.lora, row).weighted(row)
    return Table(tuple(known.get(name) or _new(name) for name in names), taken.taken)


def completed(table: str, chosen: Sequence[str] | None) -> Table:
    """The rows, and one for every LoRA that was chosen so quickly that the browser has not drawn its row yet.

    Args:
        table: as the browser hands it over
        chosen: in the picker
    """
    return selected([name_of(item) for item in chosen or ()], Table.parse(table), Table())


def of_prompt(concept: Concept) -> Row:
    """The row of a LoRA that a prompt names, with the prompt's weights."""
    weights = {"te_weight": concept.te_weight, "unet_weight": concept.unet_weight}
    return Row(concept.lora, {**_new(concept.lora).typed, **weights})


def of_concept(concept: Concept, name: str) -> Row:
    """The row that says all that a concept does.

    Args:
        name: of the installed LoRA
    """
    typed = {field: getattr(concept, field) for field in _FIELDS if field != "dyn"}
    typed |= {
        **{field: "\n".join(getattr(concept, field)) for field in _LINES},
        "trigger": concept.trigger or "",
        "alone": "true" if concept.alone else "",
    }
    return Row(name, typed)


def of_request(request: MergeRequest) -> tuple[Table, list[str]]:
    """The table of a request, as if it were taken over from a prompt; and which of its LoRAs are not installed any more."""
    there, missing = [], []
    for concept in request.concepts:
        try:
            there.append(of_concept(concept, find_lora(concept.label).name))
        except LoraclrError:
            missing.append(concept.label)
    return Table(tuple(there), secrets.token_hex(4)), missing


def _new(name: str) -> Row:
    try:
        lora = find_lora(name)
    except LoraclrError:
        return Row(name)
    # a style that only its file name could call is one without trigger words
    style = lora.found_trigger.source == "name" and "style" in f"{lora.folder}/{lora.name}".lower()
    return Row(name, {"trigger": "" if style else lora.trigger, "kind": "style" if style else "subject"})


def found(rows: Sequence[Row]) -> dict[str, InstalledLora]:
    """The LoRAs of these rows that are still installed."""
    loras = {}
    for row in rows:
        try:
            loras[row.lora] = find_lora(row.lora)
        except LoraclrError:
            continue
    return loras


def render(table: Table, loras: Mapping[str, InstalledLora]) -> str:
    """The table as HTML; every text from files is safe."""
    if not table.rows:
        return (
            f"<div class='loraclr-rows loraclr-empty' data-taken='{safe(table.taken)}'>"
            "<p>Choose two or more LoRAs above. Each gets a row here with its weights and trigger words.</p></div>"
        )
    body = "".join(_row(row, loras.get(row.lora), table.rows) for row in table.rows)
    head = (
        "<div class='loraclr-row loraclr-head'><span></span><span>Concept</span>"
        f"<span title='{safe(_TIPS['te_weight'])}'>Weight</span>"
        f"<span title='{safe(_TIPS['trigger'])}'>Trigger words</span>"
        f"<span title='{safe(_TIPS['kind'])}'>Kind</span><span></span></div>"
    )
    return f"<div class='loraclr-rows' data-taken='{safe(table.taken)}'>{head}{body}{_bulk(table.rows)}</div>"


def _row(row: Row, lora: InstalledLora | None, rows: Sequence[Row]) -> str:
    reason = obstacle(lora) if lora else "it is not installed any more"
    folder = f"{lora.folder}/" if lora and lora.folder else ""
    kind = "unreadable" if lora and lora.problem else lora.family if lora else ""
    badge = f" <span class='loraclr-badge'>{safe(kind)}</span>" if lora and reason else ""
    refused = f"<div class='loraclr-refused'>Cannot be merged: {safe(reason)}.</div>" if reason else ""
    more = " open" if row["prompts"] or row["outfits"] or row["alone"] or _number(row["importance"]) != "1" else ""
    return (
        f"<div class='loraclr-row loraclr-concept{' loraclr-bad' if reason else ''}' data-lora='{safe(row.lora)}' "
        f"data-kind='{safe(row['kind'])}'>{_picture(lora)}"
        f"<span class='loraclr-name' title='{safe(folder + row.lora)}'>"
        f"<small>{safe(folder)}</small>{safe(row.lora)}{badge}</span>"
        f"{_weights(row)}{_trigger(row, lora)}{_cell('Kind', _kind(row), 'loraclr-kind')}"
        f"<details class='loraclr-more'{more}><summary title='Importance and own prompts'>…</summary></details>"
        f"<div class='loraclr-extra'><label>Importance {_number_input(row, 'importance')}</label>"
        f"<label>Own prompts <textarea data-field='prompts' rows='2' placeholder='in place of the templates, one per line' "
        f"aria-label='Own prompts of {safe(row.lora)}' title='{safe(_TIPS['prompts'])}'>"
        f"{safe(row['prompts'])}</textarea></label>{_outfits(row)}{_alone(row)}</div>"
        f"{_applied_to(row, rows)}{refused}{_merged(lora) if lora and not reason else ''}</div>"
    )


def _merged(lora: InstalledLora) -> str:
    """Of what LoRACLR merged: that what is in it can be gone on from, where as a row it counts as one concept."""
    if not is_merged(lora):
        return ""
    tip = "Fills the form with what is in it; what else is chosen is added, in fewer steps than all take from nothing"
    return (
        "<div class='loraclr-merged'>A merge of several, here one concept. "
        f"<button type='button' class='loraclr-add-to' data-lora='{safe(lora.name)}' title='{tip}'>Add to this one</button></div>"
    )


def _trigger(row: Row, lora: InstalledLora | None) -> str:
    """The trigger words, and whether they are a guess."""
    guessed = lora is not None and lora.trigger_is_guess and row["trigger"] == lora.trigger
    tip = lora.found_trigger.warning(lora.name) if guessed else _TIPS["trigger"]
    mark = f"<small class='loraclr-guessed' title='{safe(tip)}'>guessed</small>" if guessed else ""
    return _cell(
        "Trigger words",
        f"<span class='loraclr-words'><input type='text' data-field='trigger' value='{safe(row['trigger'])}' "
        f"placeholder='trigger words' aria-label='Trigger words of {safe(row.lora)}' title='{safe(tip)}'>{mark}</span>",
        "loraclr-trigger",
    )


def _weights(row: Row) -> str:
    """One weight, as most prompts have it; or one for the text encoder and one for the UNet."""
    apart = " loraclr-apart" if _number(row["te_weight"]) != _number(row["unet_weight"]) else ""
    tip = "One weight for the text encoder and another for the UNet, or one for both"
    split = (
        f"<button type='button' class='loraclr-split' title='{tip}' aria-label='{tip}: {safe(row.lora)}'>split</button>"
    )
    both = _number_input(row, "te_weight") + _number_input(row, "unet_weight")
    return f"<div class='loraclr-cell loraclr-weights{apart}'><small>Weight</small><span>{both}{split}</span></div>"


def _picture(lora: InstalledLora | None) -> str:
    url = preview_url(lora) if lora else None
    if url:
        return f"<img class='loraclr-thumb' src='{safe(url)}' alt='' loading='lazy'>"
    return f"<span class='loraclr-thumb' aria-hidden='true'>{safe((lora.name if lora else '?')[:1].upper())}</span>"


def _cell(label: str, inside: str, kind: str = "") -> str:
    """A field with its label, which is seen where the page is too narrow for the table's head."""
    return f"<label class='loraclr-cell {kind}'><small>{label}</small>{inside}</label>"


def _number_input(row: Row, name: str) -> str:
    step = "0.1" if name == "importance" else "0.05"
    return (
        f"<input type='number' step='{step}' data-field='{name}' value='{safe(_number(row[name]))}' "
        f"aria-label='{safe(_NUMBERS[name])} of {safe(row.lora)}' title='{safe(_TIPS[name])}'>"
    )


def _kind(row: Row) -> str:
    options = "".join(
        f"<option value='{kind}'{' selected' if kind == row['kind'] else ''}>{kind}</option>" for kind in KINDS
    )
    return f"<select data-field='kind' aria-label='Kind of {safe(row.lora)}' title='{safe(_TIPS['kind'])}'>{options}</select>"


def _outfits(row: Row) -> str:
    """Other sets of trigger words, of a subject."""
    return (
        "<label class='loraclr-of-subject'>Outfits <textarea data-field='outfits' rows='2' "
        f"placeholder='other trigger words, one set per line' aria-label='Outfits of {safe(row.lora)}' "
        f"title='{safe(_TIPS['outfits'])}'>{safe(row['outfits'])}</textarea></label>"
    )


def _applied_to(row: Row, rows: Sequence[Row]) -> str:
    """Which subjects a style is taught on: a tick each, which the browser writes into the field; none is all.

    The browser shows it where the row is a style's, with those of the others that are subjects.
    """
    others = [other for other in rows if other.lora != row.lora]
    if len(others) < 2:
        return ""
    chosen = str(row["applied_to"]).splitlines()
    ticks = "".join(
        f"<label data-subject='{safe(other.lora)}'{'' if other['kind'] == 'subject' else ' hidden'}><input type='checkbox'"
        f"{'' if chosen and other.lora not in chosen else ' checked'}>{safe(other.lora)}</label>"
        for other in others
    )
    return (
        f"<div class='loraclr-applied' title='{safe(_TIPS['applied_to'])}'><span>Applied to</span>{ticks}"
        f"<input type='hidden' data-field='applied_to' value='{safe(row['applied_to'])}'></div>"
    )


def _alone(row: Row) -> str:
    """Whether it may stand beside others: a choice of two, since the browser hands over values and no ticks."""
    options = "".join(
        f"<option value='{value}'{' selected' if bool(row['alone']) == bool(value) else ''}>{text}</option>"
        for value, text in (("", "also beside others"), ("true", "never beside others"))
    )
    return (
        f"<label>In one picture <select data-field='alone' aria-label='{safe(row.lora)} in one picture with others' "
        f"title='{safe(_TIPS['alone'])}'>{options}</select></label>"
    )


def _bulk(rows: Sequence[Row]) -> str:
    if len(rows) < 2:
        return ""
    tip = "Sets the weight in every row"
    field = f"<input type='number' step='0.05' data-all='weight' placeholder='all' aria-label='Weight of all' title='{tip}'>"
    return (
        "<div class='loraclr-row loraclr-bulk'><span></span><span class='loraclr-name'>All concepts</span>"
        f"{_cell('Weight', field, 'loraclr-weights')}</div>"
    )


def _number(value: Any) -> str:
    """As a person would write it; what is no number comes back as it was."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return f"{number:g}" if math.isfinite(number) else str(value)
