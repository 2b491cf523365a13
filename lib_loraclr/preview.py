"""The picture of a merge: every concept as base | alone | all tags | merged, same seeds, then two concepts at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .hosts.base import Host
from .low_rank import Factors, concatenate
from .merge import Merge
from .progress import Progress
from .prompts import concept_prompts, is_background
from .sampling import BATCH, sample

COLUMNS = ("base", "alone", "all tags", "merged")
MARGIN, LABEL = 6, 18
#: cells are enlarged to at least this many pixels, so that labels fit
CELL = 192


@dataclass(frozen=True)
class PreviewOptions:
    """Attributes:
    steps: of each picture
    guidance: classifier-free guidance
    seed: of the first picture
    pairs: how many prompts with two concepts
    """

    steps: int = 16
    guidance: float = 5.0
    seed: int = 3_000_000
    pairs: int = 4


def preview_grid(merge: Merge, host: Host, options: PreviewOptions, progress: Progress | None = None) -> Image.Image:
    """Draw the picture; the model is left as it was."""
    progress = progress or Progress()
    concepts, negative = merge.request.concepts, merge.request.prompts.negative
    height = merge.request.recording.height or host.default_size
    width = merge.request.recording.width or host.default_size
    called = [i for i, concept in enumerate(concepts) if not is_background(concept)]
    pairs = [(a, b) for a, b in zip(called[::2], called[1::2], strict=False)][: options.pairs]
    prompts = [concept_prompts(concept, merge.request.prompts)[0] for concept in concepts]
    pair = merge.request.prompts.pair
    doubles = [pair.replace("{first}", concepts[a].trigger).replace("{second}", concepts[b].trigger) for a, b in pairs]
    everyone = _sum([given.deltas for given in merge.inputs])
    chunks = -(-len(prompts) // BATCH)
    progress.start("drawing the preview", options.steps * (3 * chunks + len(concepts) + 2 * bool(doubles)))

    def draw(deltas: Mapping[str, Factors], texts: Sequence[str], seed: int, wide: int = 1) -> list[Image.Image]:
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

    base, together, merged = (draw(d, prompts, options.seed) for d in ({}, everyone, merge.factors))
    alone = [draw(given.deltas, [prompts[i]], options.seed + i)[0] for i, given in enumerate(merge.inputs)]
    rows = [([base[i], alone[i], together[i], merged[i]], concept.label) for i, concept in enumerate(concepts)]
    if doubles:
        seed = options.seed + len(prompts)
        both = [draw(deltas, doubles, seed, 2) for deltas in (everyone, merge.factors)]
        for k, (a, b) in enumerate(pairs):
            rows.append(([both[0][k], both[1][k]], f"{concepts[a].label} + {concepts[b].label}"))
    return _lay_out(rows)


def _sum(deltas: Sequence[Mapping[str, Factors]]) -> dict[str, Factors]:
    keys = sorted(set().union(*deltas))
    return {key: concatenate([d[key] for d in deltas if key in d]) for key in keys}


def _lay_out(rows: Sequence[tuple[Sequence[Image.Image], str]]) -> Image.Image:
    scale = max(1, round(CELL / rows[0][0][0].width))
    cell_width, cell_height = rows[0][0][0].width * scale, rows[0][0][0].height * scale
    width = 4 * cell_width + 5 * MARGIN
    step = cell_height + LABEL + MARGIN
    sheet = Image.new("RGB", (width, LABEL + MARGIN + step * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(COLUMNS):
        pen.text((MARGIN + column * (cell_width + MARGIN), MARGIN), text, fill="black")
    for number, (pictures, label) in enumerate(rows):
        top = LABEL + MARGIN + number * step
        captions = [label] if len(pictures) == len(COLUMNS) else [f"{label}: all tags", f"{label}: merged"]
        across = 4 // len(pictures)
        for column, picture in enumerate(pictures):
            left = MARGIN + column * across * (cell_width + MARGIN)
            sheet.paste(picture.resize((picture.width * scale, cell_height), Image.LANCZOS), (left, top + LABEL))
            if column < len(captions):
                pen.text((left, top), captions[column], fill="black")
    return sheet
