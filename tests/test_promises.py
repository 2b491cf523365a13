"""Every promise in docs/promises.md is held by a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = (ROOT / "docs" / "promises.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PROMISES.splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "| **"))
]


def names_of(path: str) -> set[str]:
    """The tests of a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_there_are_promises() -> None:
    assert len(ROWS) > 30 and all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_promise_is_held_by_a_test_that_exists(row: list[str]) -> None:
    promise, held_by, seen = row
    path, _, name = held_by.strip("`").partition("::")
    assert promise and seen
    assert name in names_of(path), f"{held_by}: is it called otherwise now?"


def test_a_test_that_is_not_there_would_be_seen() -> None:
    """The control of the test above."""
    assert "test_there_are_promises" in names_of("tests/test_promises.py")
    assert "test_that_nobody_wrote" not in names_of("tests/test_promises.py")
    with pytest.raises(AssertionError, match="called otherwise"):
        test_a_promise_is_held_by_a_test_that_exists(["x", "`tests/test_promises.py::test_that_nobody_wrote`", "x"])


@pytest.mark.parametrize("path", ["SECURITY.md", "docs/promises.md", "docs/responsible-use.md"])
def test_links_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / path).parent.joinpath(target).exists(), target
