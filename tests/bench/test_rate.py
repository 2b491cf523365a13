"""Blind ratings: the order, what is kept, what is told, and the page's server."""

from __future__ import annotations

import csv
import io
import json
import socket
from pathlib import Path

import pytest

from bench.rate import Handler, serve
from bench.ratings import Pair, Ratings
from lib_loraclr.errors import LoraclrError

METHODS = ("one", "two")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods, three concepts."""
    pairs = []
    for method in METHODS:
        for concept in ("fox", "pizza", "robot"):
            for side in ("before", "after"):
                (tmp_path / f"{method}-{concept}-{side}.png").write_bytes(f"{method} {concept} {side}".encode())
            files = (f"{method}-{concept}-before.png", f"{method}-{concept}-after.png")
            pairs.append(Pair(method, concept, f"a photo of a {concept}", *files).__dict__)
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), "utf-8")
    return tmp_path


def test_pairs_come_once_in_an_order_that_tells_nothing(folder: Path) -> None:
    ratings, seen = Ratings(folder), []
    while (pair := ratings.following()) is not None:
        seen.append(pair)
        ratings.rate(pair, 3)
    assert sorted(seen) == list(range(6)) and seen != sorted(seen)
    assert Ratings(folder, seed=1).following() is None, "ratings are kept"


def test_the_summary_is_the_mean_and_its_interval(folder: Path) -> None:
    ratings = Ratings(folder)
    for pair, score in enumerate((1, 2, 3, 5, 5, 5)):
        ratings.rate(pair, score)
    first, second = ratings.summary()
    assert (first["method"], first["mean"], first["lower"]) == ("two", 5.0, 5.0)
    assert (second["mean"], second["upper"]) == pytest.approx((2.0, 2.0 + 4.30 / 3**0.5))
    rated, summed = ratings.export()
    lines = list(csv.DictReader(io.StringIO(rated.read_text("utf-8"))))
    assert lines[0] == {"method": "one", "concept": "fox", "prompt": "a photo of a fox", "score": "1"}
    assert next(csv.DictReader(io.StringIO(summed.read_text("utf-8"))))["mean"] == "5.000"


@pytest.mark.parametrize("score", [0, 6, "3", 2.5, None, True])
def test_a_score_is_one_to_five(folder: Path, score: object) -> None:
    with pytest.raises(LoraclrError, match="give a whole number from 1 to 5"):
        Ratings(folder).rate(0, score)


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraclrError, match="no pair 6: there are 0 to 5"):
        Ratings(folder).rate(6, 3)
    with pytest.raises(LoraclrError, match="no picture 'other' of pair 0"):
        Ratings(folder).picture(0, "other")
    with pytest.raises(LoraclrError, match="has no pairs.json: draw pairs first"):
        Ratings(tmp_path / "empty")


def asked(ratings: Ratings, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    """One request through the handler, over a pair of sockets: no connection is opened."""
    sent = b"" if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    told = {"Host": "localhost:1", "Content-Type": "application/json", "Content-Length": str(len(sent))} | headers
    head = "\r\n".join([f"{'GET' if body is None else 'POST'} {path} HTTP/1.0", *map(": ".join, told.items()), "", ""])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(head.encode() + sent)
        Handler(ratings, theirs, ("127.0.0.1", 0), None)
        theirs.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as stream:
            answer = stream.read()
    first, _, content = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), content


@pytest.fixture
def ratings(folder: Path) -> Ratings:
    return Ratings(folder)


def test_the_page_never_tells_the_method_before_the_end(ratings: Ratings, folder: Path) -> None:
    assert b"Is it the same" in asked(ratings, "/")[1]
    told = json.loads(asked(ratings, "/next")[1])
    while told["pair"] is not None:
        assert set(told) == {"done", "of", "pair", "prompt"}
        assert asked(ratings, f"/picture/{told['pair']}/after")[1].endswith(b"after")
        status, answer = asked(ratings, "/rate", {"pair": told["pair"], "score": 4})
        assert status == 200
        told = json.loads(answer)
    assert {line["method"] for line in told["summary"]} == set(METHODS)
    assert (folder / "summary.csv").is_file()
    assert asked(ratings, "/ratings.csv")[1].count(b"\n") == 7


@pytest.mark.parametrize("body", ["no JSON", "[1]", "x" * 2000])
def test_what_is_no_rating_is_refused(ratings: Ratings, body: str) -> None:
    status, answer = asked(ratings, "/rate", body)
    assert status == 400 and "A rating is JSON" in json.loads(answer)["error"]


def test_another_pages_form_and_another_name_for_this_machine_are_refused(
    ratings: Ratings,
) -> None:
    status, _ = asked(ratings, "/rate", {"pair": 0, "score": 1}, **{"Content-Type": "text/plain"})
    assert status == 400
    status, answer = asked(ratings, "/next", Host="evil.example:80")
    assert status == 400 and "open it as localhost" in json.loads(answer)["error"]


def test_the_server_is_for_this_machine_alone(ratings: Ratings) -> None:
    server = serve(ratings, 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
    finally:
        server.server_close()


@pytest.mark.parametrize(
    "path", ["/picture/0/../../pairs.json", "/picture/99/after", "/picture/x/after", "/pairs.json"]
)
def test_nothing_but_pictures_of_pairs_is_given_out(ratings: Ratings, path: str) -> None:
    assert asked(ratings, path)[0] == 400
