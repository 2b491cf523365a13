"""What the tests of the command line share: how a command ended, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib_loraclr.doors.cli import build_parser
from lib_loraclr.doors.cli.arguments import build_request
from lib_loraclr.output.merged import Merge
from lib_loraclr.request.merge_request import MergeRequest


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
WriteLora = Callable[..., Path]
MakeMerge = Callable[..., Merge]


def listing(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(result: Result, *fragments: str) -> None:
    """Exit code 2, one sentence after at most a word of progress, and these words in it."""
    assert result.code == 2, result
    assert result.out == ""
    *progress, line = result.err.splitlines()
    assert all(text.startswith("loading ") for text in progress), result.err
    assert line.startswith("loraclr: ")
    assert line.endswith(".")
    for fragment in fragments:
        assert fragment in line


def request_of(*arguments: str) -> MergeRequest:
    return build_request(build_parser().parse_args(["merge", *arguments]))
