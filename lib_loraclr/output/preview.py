"""The pictures of a merge: a sheet to judge it by, and one for its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..model import ALONE, Deltas, Host, Processes, together
from ..progress import PlannedStage, Progress, Stage, Work
from ..recording import Slot, Teacher, bundled_embeddings, make_teachers, phrases_of, recorded_clip_skip
from ..request import Concept, Part, concept_prompts, is_background
from .drawing import Drawing, draw, units_of
from .merged import Merge
from .sheet import COLUMNS, Row, card_of, lay_out

#: pictures of a concept on words that were not recorded: of few concepts a row each, of many half of one
_FRESH, _FRESH_OF_MANY, _MANY = len(COLUMNS), len(COLUMNS) // 2, 5
#: how often another phrase is drawn in place of one that was drawn before
_DRAWS = 20


@dataclass(frozen=True)
class Pictures:
    """What is drawn of a merge.

    Attributes:
        sheet: every concept as base | alone | all tags | merged, of the same seed; as merged with words that nothing was learnt
            from, each of another seed; every style on some of the subjects; then two concepts at a time
        card: every concept as merged, and nothing else: what the file makes
    """

    sheet: Image.Image
    card: Image.Image


@dataclass(frozen=True)
class PreviewOptions:
    """How the picture is drawn.

    Attributes:
        steps: of each picture
        guidance: classifier-free guidance
        seed: of the first picture
        pairs: how many prompts with two concepts
        font: TrueType file of the captions; None for Pillow's own
    """

    steps: int = 16
    guidance: float = 5.0
    seed: int = 3_000_000
    pairs: int = 4
    font: str | None = None


@dataclass(frozen=True)
class _Asked:
    """Prompts that only the merge is asked, a picture each.

    Attributes:
        prompt: what is asked
        caption: what stands above the picture
    """

    prompt: str
    caption: str


def plan_preview(concepts: Sequence[Concept], options: PreviewOptions) -> PlannedStage:
    """What drawing takes."""
    number, pairs = len(concepts), len(_pairs(concepts, options))
    fresh, styled = number * _fresh(number), sum(len(subjects) for _, subjects in _styles(concepts))
    calls = [number] * 3 + [1] * number + [fresh, styled] + [pairs] * 2
    pictures = 4 * number + fresh + styled + 4 * pairs  # one with two concepts is as wide as two
    units = sum(units_of(call, options.steps) for call in calls)
    return PlannedStage(Stage.DRAWING, units, Work.EVALUATION, 2 * options.steps * pictures)


def draw_pictures(
    merge: Merge,
    host: Host,
    options: PreviewOptions,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Pictures:
    """Draw the pictures; the model is left as it was.

    Args:
        processes: that draw together, as of the merge
    """
    with processes.failing():
        return _drawn(merge, host, options, progress or Progress(), processes)


def _drawn(merge: Merge, host: Host, options: PreviewOptions, progress: Progress, processes: Processes) -> Pictures:
    """As `draw_pictures`."""
    concepts, recording = merge.request.concepts, merge.request.recording
    size = (recording.height or host.default_size, recording.width or host.default_size)
    drawing = Drawing(*size, options.steps, options.guidance, merge.request.prompts.negative)
    prompts = [concept_prompts(concept, merge.request.prompts)[0] for concept in concepts]
    everyone = together([lora.deltas for lora in merge.inputs])
    progress.start(Stage.DRAWING, plan_preview(concepts, options).units)
    asked, pairs, number = (_asked_fresh(merge), _asked_styled(merge)), _pairs(concepts, options), len(prompts)
    doubles = [_double(merge, *pair) for pair in pairs]
    skip, _ = recorded_clip_skip(recording.clip_skip, merge.inputs, host)
    # deltas, prompts, number of the first seed, and how many pictures' width each has
    wanted: list[tuple[Deltas, Sequence[str], int, int]]
    wanted = [(deltas, prompts, 0, 1) for deltas in ({}, everyone, merge.factors)]
    wanted += [(lora.deltas, [prompts[i]], i, 1) for i, lora in enumerate(merge.inputs)]
    # of other seeds than what was recorded is drawn with
    wanted += [(merge.factors, [one.prompt for one in some], number, 1) for some in asked]
    wanted += [(deltas, doubles, number, 2) for deltas in (everyone, merge.factors)]

    def drawn(place: int) -> list[Image.Image]:
        processes.check()
        deltas, texts, first, wide = wanted[place]
        seeds = range(options.seed + first, options.seed + first + len(texts))
        how = replace(drawing, width=drawing.width * wide)
        if not texts:
            return []
        if place == 0:  # what the LoRAs bundle is not known to the model without them
            return draw(host, deltas, texts, seeds, how, progress)
        with host.knowing(bundled_embeddings(merge.inputs)), host.skipping(skip):
            return draw(host, deltas, texts, seeds, how, progress)

    def told(place: int) -> None:
        progress.found(units_of(len(wanted[place][1]), options.steps))

    found = processes.each(len(wanted), drawn, told)
    (base, summed, merged), alone = found[:3], [one[0] for one in found[3 : 3 + number]]
    fresh, styled, *both = found[3 + number :]
    rows = [Row([base[i], alone[i], summed[i], merged[i]], [concept.label]) for i, concept in enumerate(concepts)]
    rows += _rows(fresh, asked[0], [len(COLUMNS)] * -(-len(fresh) // len(COLUMNS)))
    rows += _rows(styled, asked[1], [len(subjects) for _, subjects in _styles(concepts)])
    for k, (a, b) in enumerate(pairs):
        label = f"{concepts[a].label} + {concepts[b].label}"
        rows.append(Row([both[0][k], both[1][k]], [f"{label}: all tags", f"{label}: merged"], wide=2))
    return Pictures(lay_out(rows, options.font), card_of(merged))


def _rows(pictures: Sequence[Image.Image], asked: Sequence[_Asked], numbers: Sequence[int]) -> list[Row]:
    """Pictures in rows, of so many each."""
    rows, start = [], 0
    for number in numbers:
        captions = [one.caption for one in asked[start : start + number]]
        rows.append(Row(pictures[start : start + number], captions))
        start += number
    return rows


def _pairs(concepts: Sequence[Concept], options: PreviewOptions) -> list[tuple[int, int]]:
    """Which concepts are drawn beside each other."""
    called = [i for i, concept in enumerate(concepts) if not is_background(concept)]
    return list(zip(called[::2], called[1::2], strict=False))[: options.pairs]


def _double(merge: Merge, a: int, b: int) -> str:
    first, second = (merge.request.concepts[i].trigger for i in (a, b))
    return merge.request.prompts.pair.replace("{first}", first).replace("{second}", second)


def _fresh(concepts: int) -> int:
    """Pictures of each concept on words that were not recorded."""
    return _FRESH if concepts < _MANY else _FRESH_OF_MANY


def _teachers(merge: Merge) -> list[Teacher]:
    """Of each concept the teacher that asks for it alone, in the order of the request."""
    concepts = merge.request.concepts
    own = {
        t.concept: t for t in make_teachers(concepts, merge.request.prompts) if t.concept is not None and not t.guest
    }
    return [own[i] for i in range(len(concepts))]


def _asked_fresh(merge: Merge) -> list[_Asked]:
    """Every concept with words that nothing was learnt from (`request/phrases.py`), as what is measured is asked."""
    phrases = phrases_of(merge.request, merge.inputs, Part.MEASURE)
    teachers = _teachers(merge)
    asked = []
    for concept, teacher in zip(merge.request.concepts, teachers, strict=True):
        prompts: list[str] = []
        for number in range(_fresh(len(teachers))):
            for _ in range(_DRAWS):  # where a person wants no bank there may be no other
                prompt = teacher.prompt(Slot(number, Part.MEASURE, phrases.draw(), {}))
                if prompt not in prompts:
                    break
            prompts.append(prompt)
        asked += [_Asked(prompt, _called(prompt, concept)) for prompt in prompts]
    return asked


def _called(prompt: str, concept: Concept) -> str:
    """The prompt with the concept's name in place of its trigger words, which nobody can tell a row by."""
    return prompt.replace(concept.trigger, concept.label) if concept.trigger else f"{concept.label}: {prompt}"


def _styles(concepts: Sequence[Concept]) -> list[tuple[Concept, list[Concept]]]:
    """Each style, and the first of the subjects that it is applied to."""
    subjects = [concept for concept in concepts if concept.kind == "subject"]
    styles = [concept for concept in concepts if concept.kind == "style"]
    applied = [[own for own in subjects if not style.applied_to or own.label in style.applied_to] for style in styles]
    return [(style, own[: len(COLUMNS)]) for style, own in zip(styles, applied, strict=True) if own]


def _asked_styled(merge: Merge) -> list[_Asked]:
    """Every style on some of its subjects."""
    prompts = merge.request.prompts
    return [
        _Asked(
            ", ".join(filter(None, (concept_prompts(subject, prompts)[0], style.trigger))),
            f"{subject.label} in {style.label}",
        )
        for style, subjects in _styles(merge.request.concepts)
        for subject in subjects
    ]
