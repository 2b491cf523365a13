"""The paper's Figure 9 for anyone: a page on this machine that asks how well merges keep each concept, blindly.

    python dev.py rate
    python dev.py rate --rows average "LoRACLR balanced" --sets n2 --pictures 4
    python dev.py rate --only-rate

Left a picture that the concept's own LoRA draws, right one of a merge, in the same words and on the same seed. Which method
made it is not said before the last pair is rated. `ratings.csv` and `summary.csv`, with mean and interval for each method, stand
beside the pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from bench.bed import Bed
from bench.cells import write
from bench.protocol import BACKGROUNDS, GUIDANCE, SEED, SIDE, STEPS
from bench.quality import SETS
from bench.ratings import Pair, Ratings
from bench.rows import ROWS
from bench.world import Sprite, demo_host, demo_request
from lib_loraclr.errors import LoraclrError
from lib_loraclr.model import Deltas
from lib_loraclr.recording import sample

FOLDER = Path(__file__).resolve().parents[1] / "demo-output" / "rate"
DEFAULT_ROWS = ("average", "TIES", "RegMean", "LoRACLR as published", "LoRACLR balanced")
_PAGE = Path(__file__).with_name("rate.html")
#: more than any rating needs
_LONGEST_BODY = 1000


def draw_pairs(folder: Path, name: str, rows: list[str], pictures: int) -> None:
    """Merge by every row, and draw each concept with its own LoRA and with the merge."""
    request, sprites = demo_request(SETS[name], "default")
    bed = Bed(request, demo_host())
    own = {lora.concept.trigger: lora.deltas for lora in bed.inputs}
    pairs = []
    for sprite in sprites:
        _draw(bed, own[sprite.words], sprite, folder, "alone", pictures)
    for number, row in enumerate(rows):
        made, *_ = ROWS[row].made(bed)
        for sprite in sprites:
            after = _draw(bed, made.factors, sprite, folder, f"merge{number}", pictures)
            before = [_file("alone", sprite, k) for k in range(pictures)]
            told = zip(_prompts(sprite, pictures), before, after, strict=True)
            pairs += [Pair(row, sprite.name, *texts) for texts in told]
        print(f"{row}: drawn", flush=True)
    write(folder / "pairs.json", json.dumps([asdict(pair) for pair in pairs], indent=1))
    (folder / "scores.json").unlink(missing_ok=True)


@torch.no_grad()
def _draw(bed: Bed, deltas: Deltas, sprite: Sprite, folder: Path, label: str, count: int) -> list[str]:
    with bed.host.apply(deltas):
        seeds = range(SEED, SEED + count)
        latents = sample(bed.host, _prompts(sprite, count), seeds, size=(SIDE, SIDE), steps=STEPS, guidance=GUIDANCE)
    names = [_file(label, sprite, k) for k in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for file, picture in zip(names, bed.host.decode(latents), strict=True):
        picture.save(folder / file)
    return names


def _prompts(sprite: Sprite, count: int) -> list[str]:
    return [f"a photo of a {sprite.words} on a {BACKGROUNDS[k % len(BACKGROUNDS)]} background" for k in range(count)]


def _file(label: str, sprite: Sprite, number: int) -> str:
    return f"{label}-{sprite.name.replace(' ', '-')}-{number}.png"


class Handler(BaseHTTPRequestHandler):
    """The page, its pictures, and ratings; for this machine's own browser alone."""

    def __init__(self, ratings: Ratings, *arguments) -> None:
        self._ratings = ratings
        super().__init__(*arguments)

    def do_GET(self) -> None:  # noqa: N802  (http.server calls it so)
        self._answer(lambda: self._got(self.path))

    def do_POST(self) -> None:  # noqa: N802
        self._answer(self._rated)

    def _got(self, path: str) -> tuple[str, bytes]:
        if path == "/":
            return "text/html; charset=utf-8", _PAGE.read_bytes()
        if path == "/next":
            return _json(self._state())
        if path == "/ratings.csv":
            return "text/csv; charset=utf-8", self._ratings.ratings_csv().encode()
        parts = path.split("/")
        if len(parts) == 4 and parts[1] == "picture" and parts[2].isdecimal():
            return "image/png", self._ratings.picture(int(parts[2]), parts[3])
        raise LoraclrError(f"There is nothing at {path!r}.")

    def _rated(self) -> tuple[str, bytes]:
        length = int(self.headers.get("Content-Length") or 0)
        # a form of another page cannot send this type without asking first
        if self.headers.get("Content-Type") != "application/json" or not 0 < length <= _LONGEST_BODY:
            raise LoraclrError('A rating is JSON: {"pair": 0, "score": 3}.')
        try:
            given = json.loads(self.rfile.read(length))
        except ValueError:
            given = None
        if not isinstance(given, dict):
            raise LoraclrError('A rating is JSON: {"pair": 0, "score": 3}.')
        self._ratings.rate(given.get("pair"), given.get("score"))
        self._ratings.export()
        return _json(self._state())

    def _state(self) -> dict[str, object]:
        """The next pair, without what would tell its method; what was found, at the end."""
        ratings, pair = self._ratings, self._ratings.following()
        told = {"done": len(ratings.scores), "of": len(ratings.pairs), "pair": pair}
        return {**told, **({"summary": ratings.summary()} if pair is None else {"prompt": ratings.pairs[pair].prompt})}

    def _answer(self, work) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        try:
            if host not in ("127.0.0.1", "localhost"):
                raise LoraclrError(f"The page is asked for as {host!r}: open it as localhost.")
            kind, body = work()
            status = HTTPStatus.OK
        except LoraclrError as error:
            (kind, body), status = _json({"error": str(error)}), HTTPStatus.BAD_REQUEST
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: each picture would be a line."""


def _json(content: Mapping[str, object]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()


def serve(ratings: Ratings, port: int) -> ThreadingHTTPServer:
    """A server for this machine alone; a port of 0 takes any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, ratings))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of pictures and ratings")
    parser.add_argument("--only-rate", action="store_true", help="pairs that were drawn before")
    parser.add_argument("--sets", default="n4", choices=SETS, help="of LoRAs (default: n4)")
    parser.add_argument("--rows", nargs="+", default=list(DEFAULT_ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--pictures", type=int, default=2, help="of each concept and method (default: 2)")
    parser.add_argument("--port", type=int, default=7870)


def main(arguments: argparse.Namespace) -> None:
    if not arguments.only_rate:
        draw_pairs(arguments.folder, arguments.sets, arguments.rows, arguments.pictures)
    server = serve(Ratings(arguments.folder), arguments.port)
    print(f"open http://localhost:{server.server_port} and rate; Ctrl+C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"\nwritten to {arguments.folder}")
    finally:
        server.server_close()
