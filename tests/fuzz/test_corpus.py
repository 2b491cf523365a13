"""What the fuzzer found is asked again by every run, and some hundred inputs beside it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORPUS).as_posix())
def test_an_input_is_read_or_refused(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_near_those_of_the_corpus_are_read_or_refused(target: str) -> None:
    """Bytes changed, pieces left out, doubled and swapped between inputs: what needs no fuzzer to be found."""
    rng = random.Random(target)
    seeds = [path.read_bytes() for path in FILES if path.parent.name == target]
    for _ in range(150):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at, end = sorted(rng.randint(0, len(data)) for _ in range(2))
            other = rng.choice(seeds)
            start = rng.randint(0, len(other))
            piece = rng.choice([b"", bytes(data[at:end]) * 2, other[start : start + 20], bytes([rng.randrange(256)])])
            data[at : min(end, at + 40)] = piece
        TARGETS[target](bytes(data))


def test_a_target_that_fails_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above."""
    monkeypatch.setattr("tests.fuzz.targets.output_path", lambda folder, name: folder / ".." / name)
    with pytest.raises(AssertionError):
        TARGETS["name"](b"zoo")
