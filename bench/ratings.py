"""Ratings of blind pairs: which pair comes next, what was said, and what it comes to for each method."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cells import write
from bench.tables import mean_interval
from lib_loraclr.errors import LoraclrError

SCORES = range(1, 6)


@dataclass(frozen=True)
class Pair:
    """What one person compares: a concept as its own LoRA draws it, and as a merge does.

    Attributes:
        method: that made the merge; not shown before all is said
        concept, prompt: what is drawn
        before, after: names of the pictures
    """

    method: str
    concept: str
    prompt: str
    before: str
    after: str


class Ratings:
    """A folder of pairs, and the ratings so far; every one is kept at once."""

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        """
        Args:
            seed: of the order in which pairs are shown

        Raises:
            LoraclrError: the folder holds no pairs
        """
        self.folder, manifest = folder, folder / "pairs.json"
        if not manifest.is_file():
            raise LoraclrError(f"{folder} has no pairs.json: draw pairs first (without --only-rate).")
        self.pairs = [Pair(**entry) for entry in json.loads(manifest.read_text("utf-8"))]
        self._order = list(range(len(self.pairs)))
        # so that neither methods nor concepts come in a row
        random.Random(seed).shuffle(self._order)
        kept = folder / "scores.json"
        known = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
        self.scores: dict[int, int] = {int(pair): score for pair, score in known.items()}

    def following(self) -> int | None:
        """The number of the next pair without a rating; None at the end."""
        return next((pair for pair in self._order if pair not in self.scores), None)

    def rate(self, pair: object, score: object) -> None:
        """Keep a rating.

        Raises:
            LoraclrError: there is no such pair, or the score is none of 1 to 5
        """
        if type(pair) is not int or not 0 <= pair < len(self.pairs):
            raise LoraclrError(f"There is no pair {pair!r}: there are 0 to {len(self.pairs) - 1}.")
        if type(score) is not int or score not in SCORES:
            raise LoraclrError(f"The score is {score!r}: give a whole number from 1 to 5.")
        self.scores[pair] = score
        write(self.folder / "scores.json", json.dumps({str(pair): given for pair, given in self.scores.items()}))

    def picture(self, pair: int, side: str) -> bytes:
        """`before` or `after` of a pair, as PNG.

        Raises:
            LoraclrError: there is none
        """
        if not 0 <= pair < len(self.pairs) or side not in ("before", "after"):
            raise LoraclrError(f"There is no picture {side!r} of pair {pair}.")
        return (self.folder / getattr(self.pairs[pair], side)).read_bytes()

    def summary(self) -> list[dict[str, object]]:
        """Per method: how many ratings, their mean, and its 95 % interval."""
        by_method: dict[str, list[int]] = {}
        for pair, score in sorted(self.scores.items()):
            by_method.setdefault(self.pairs[pair].method, []).append(score)
        lines = []
        for method, scores in by_method.items():
            mean, lower, upper = mean_interval(scores)
            lines.append({"method": method, "ratings": len(scores), "mean": mean, "lower": lower, "upper": upper})
        return sorted(lines, key=lambda line: -line["mean"])

    def ratings_csv(self) -> str:
        """One line for each rating."""
        rated = [{**asdict(self.pairs[pair]), "score": score} for pair, score in sorted(self.scores.items())]
        return as_csv([{key: line[key] for key in ("method", "concept", "prompt", "score")} for line in rated])

    def export(self) -> tuple[Path, Path]:
        """Write `ratings.csv` and `summary.csv` into the folder."""
        paths = self.folder / "ratings.csv", self.folder / "summary.csv"
        write(paths[0], self.ratings_csv())
        write(paths[1], as_csv(self.summary()))
        return paths


def as_csv(lines: Sequence[Mapping[str, object]]) -> str:
    """Lines with the same keys, with a head; numbers with three digits."""
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines])
    return text.getvalue()
