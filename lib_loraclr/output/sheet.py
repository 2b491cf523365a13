"""Pictures laid out: as a sheet to judge a merge by, and as the one picture of its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

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
class Row:
    """A row of the sheet.

    Attributes:
        pictures: from left to right
        captions: one for the whole row, or one for each picture
        wide: over how many columns each picture goes
    """

    pictures: Sequence[Image.Image]
    captions: Sequence[str]
    wide: int = 1


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


def lay_out(rows: Sequence[Row], font: str | None) -> Image.Image:
    """The rows below each other, under the names of the columns.

    Args:
        rows: the first has a picture in each column
        font: TrueType file of the captions; None for Pillow's own
    """
    first = rows[0].pictures[0]
    # by whole numbers, so that small pictures stay sharp; large ones are made smaller
    scale = max(1, round(CELL / first.width)) if first.width <= LARGEST_CELL else LARGEST_CELL / first.width
    cell_width, cell_height = round(first.width * scale), round(first.height * scale)
    line = caption_height(cell_width)
    step = cell_height + line + MARGIN
    columns = len(COLUMNS)
    size = (columns * cell_width + (columns + 1) * MARGIN, line + step * len(rows))
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    pen, letters = ImageDraw.Draw(sheet), _font(font, round(cell_width * _LETTERS))

    def write(left: int, top: int, text: str, width: int) -> None:
        pen.text((left, top + line // 2), _fitted(text, letters, width), fill=_INK, font=letters, anchor="lm")

    for column, text in enumerate(COLUMNS):
        write(MARGIN + column * (cell_width + MARGIN), 0, text, cell_width)
    for number, row in enumerate(rows):
        top = line + number * step
        # one caption is the whole row's
        room = cell_width * (columns if len(row.captions) == 1 else row.wide)
        for place, picture in enumerate(row.pictures):
            left = MARGIN + place * row.wide * (cell_width + MARGIN)
            sheet.paste(picture.resize((round(picture.width * scale), cell_height), Image.LANCZOS), (left, top + line))
            if place < len(row.captions):
                write(left, top, row.captions[place], room)
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
