"""The pictures of a merge: a sheet to judge it by, and one for its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..model import ALONE, Deltas, Host, Processes, together
from ..progress import PlannedStage, Progress, Stage, Work
from ..recording import BATCH, bundled_embeddings, recorded_clip_skip, sample
from ..request import concept_prompts, is_background
from .merged import Merge

COLUMNS = ("base", "alone", "all tags", "merged")
#: between cells
MARGIN = 6
#: cells are enlarged to at least this many pixels, so that captions fit
CELL, LARGEST_CELL = 192, 384
#: height of the captions' letters and of their line, as shares of a cell: the sheet is mostly looked at much reduced
_LETTERS, _LINE = 0.1, 0.15
#: readable on the white of one theme and the near black of another, for the sheet has no ground of its own
_INK = (128, 128, 128, 255)


#: of a card's picture in pixels: the shape in which the WebUI shows it
CARD = (384, 576)


@dataclass(frozen=True)
class Pictures:
    """What is drawn of a merge.

    Attributes:
        sheet: every concept as base | alone | all tags | merged, of the same seed, then two concepts at a time
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


def plan_preview(called: int, concepts: int, options: PreviewOptions) -> PlannedStage:
    """What drawing takes.

    Args:
        called: how many of the concepts a prompt calls; two of them at a time are drawn together
        concepts: how many there are
    """
    chunks, pairs = -(-concepts // BATCH), min(options.pairs, called // 2)
    evaluations = options.steps * (3 * chunks + concepts + 2 * bool(pairs))
    pictures = 4 * concepts + 4 * pairs  # one with two concepts is as wide as two
    return PlannedStage(Stage.DRAWING, evaluations, Work.EVALUATION, 2 * options.steps * pictures)


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
    concepts, negative = merge.request.concepts, merge.request.prompts.negative
    height = merge.request.recording.height or host.default_size
    width = merge.request.recording.width or host.default_size
    called = [i for i, concept in enumerate(concepts) if not is_background(concept)]
    pairs = [(a, b) for a, b in zip(called[::2], called[1::2], strict=False)][: options.pairs]
    prompts = [concept_prompts(concept, merge.request.prompts)[0] for concept in concepts]
    pair = merge.request.prompts.pair
    doubles = [pair.replace("{first}", concepts[a].trigger).replace("{second}", concepts[b].trigger) for a, b in pairs]
    everyone = together([lora.deltas for lora in merge.inputs])
    progress.start(Stage.DRAWING, plan_preview(len(called), len(concepts), options).units)

    def draw(deltas: Deltas, texts: Sequence[str], seed: int, wide: int = 1) -> list[Image.Image]:
        with host.apply(deltas):
            latents = sample(
                host,
                texts,
                range(seed, seed + len(texts)),
                size=(height, width * wide),
                steps=options.steps,
                guidance=options.guidance,
                negative=negative,
                tick=progress.advance,
            )
        return host.decode(latents)

    def drawn(place: int) -> list[Image.Image]:
        processes.check()
        deltas, texts, seed, wide = wanted[place]
        if place == 0:  # what the LoRAs bundle is not known to the model without them
            return draw(deltas, texts, seed, wide)
        with host.knowing(bundled_embeddings(merge.inputs)), host.skipping(skip):
            return draw(deltas, texts, seed, wide)

    skip, _ = recorded_clip_skip(merge.request.recording.clip_skip, merge.inputs, host)
    wanted = [(deltas, prompts, options.seed, 1) for deltas in ({}, everyone, merge.factors)]
    wanted += [(lora.deltas, [prompts[i]], options.seed + i, 1) for i, lora in enumerate(merge.inputs)]
    seed = options.seed + len(prompts)
    wanted += [(deltas, doubles, seed, 2) for deltas in (everyone, merge.factors) if doubles]
    found = processes.each(len(wanted), drawn)
    (base, summed, merged), both = found[:3], found[3 + len(prompts) :]
    alone = [one[0] for one in found[3 : 3 + len(prompts)]]
    rows = [([base[i], alone[i], summed[i], merged[i]], concept.label) for i, concept in enumerate(concepts)]
    for k, (a, b) in enumerate(pairs):
        rows.append(([both[0][k], both[1][k]], f"{concepts[a].label} + {concepts[b].label}"))
    return Pictures(_lay_out(rows, options.font), card_of(merged))


def card_of(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures as one that fills a card, without gaps: what is wider or higher than its place is cut at both ends."""
    width, height = CARD
    across = _columns(len(pictures), pictures[0].width / pictures[0].height)
    down = -(-len(pictures) // across)
    card = Image.new("RGB", CARD)
    for number in range(down):
        row = pictures[number * across : (number + 1) * across]
        top, bottom = height * number // down, height * (number + 1) // down
        for place, picture in enumerate(row):  # the last row may have fewer, which are wider
            left, right = width * place // len(row), width * (place + 1) // len(row)
            cell = ImageOps.fit(picture.convert("RGB"), (right - left, bottom - top), Image.LANCZOS)
            card.paste(cell, (left, top))
    return card


def _columns(number: int, shape: float) -> int:
    """Into how many columns so many pictures go with the least cut off.

    Args:
        shape: width of a picture by its height
    """

    def cut(across: int) -> float:
        place = CARD[0] / across / (CARD[1] / -(-number // across))
        return abs(math.log(place / shape))

    return min(range(1, number + 1), key=cut)


def caption_height(cell_width: int) -> int:
    """Height of a line of captions, in pixels."""
    return round(cell_width * _LINE)


def _lay_out(rows: Sequence[tuple[Sequence[Image.Image], str]], font: str | None) -> Image.Image:
    first = rows[0][0][0]
    # by whole numbers, so that small pictures stay sharp; large ones are made smaller
    scale = max(1, round(CELL / first.width)) if first.width <= LARGEST_CELL else LARGEST_CELL / first.width
    cell_width, cell_height = round(first.width * scale), round(first.height * scale)
    line = caption_height(cell_width)
    step = cell_height + line + MARGIN
    sheet = Image.new("RGBA", (4 * cell_width + 5 * MARGIN, line + step * len(rows)), (0, 0, 0, 0))
    pen, letters = ImageDraw.Draw(sheet), _font(font, round(cell_width * _LETTERS))

    def write(left: int, top: int, text: str, width: int) -> None:
        pen.text((left, top + line // 2), _fitted(text, letters, width), fill=_INK, font=letters, anchor="lm")

    for column, text in enumerate(COLUMNS):
        write(MARGIN + column * (cell_width + MARGIN), 0, text, cell_width)
    for number, (pictures, label) in enumerate(rows):
        top = line + number * step
        whole = len(pictures) == len(COLUMNS)
        captions = [label] if whole else [f"{label}: all tags", f"{label}: merged"]
        across = 4 // len(pictures)
        for column, picture in enumerate(pictures):
            left = MARGIN + column * across * (cell_width + MARGIN)
            sheet.paste(picture.resize((round(picture.width * scale), cell_height), Image.LANCZOS), (left, top + line))
            if column < len(captions):
                write(left, top, captions[column], 4 * cell_width if whole else 2 * cell_width)
    return sheet


def _font(file: str | None, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    if file:
        return ImageFont.truetype(file, size)
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has its font in one size only
        return ImageFont.load_default()


def _fitted(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened where it would run into the next caption."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
