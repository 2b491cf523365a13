"""Measured cells: one JSON file each, written whole, so that a run goes on where the last one ended.

Every part of the benchmark writes its figures here, and its tables and plots are made from them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from lib_loraclr import __version__

RESULTS = Path(__file__).resolve().parent / "results"


class Cells:
    """The cells of one part.

    A cell is known by its name, `n4/seed0/ties`, and by what was asked of it: asked otherwise (more pictures, other options),
    it is measured again.
    """

    def __init__(self, part: str, root: Path = RESULTS) -> None:
        """
        Args:
            part: of the benchmark; the folder's name
            root: where all results are
        """
        self.part, self.root, self.folder = part, root, root / part

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def known(self, name: str, asked: Mapping[str, object] | None = None) -> dict | None:
        """A cell's figures; None where it was not measured, or was asked otherwise."""
        path = self.path(name)
        if not path.is_file():
            return None
        kept = json.loads(path.read_text("utf-8"))
        same = asked is None or kept["asked"] == json.loads(json.dumps(asked))
        return kept["figures"] if same else None

    def measured(self, name: str, asked: Mapping[str, object], measure: Callable[[], dict]) -> dict:
        """A cell's figures, measured if need be."""
        figures = self.known(name, asked)
        if figures is None:
            wall, processor = time.perf_counter(), time.process_time()
            figures = measure()
            took = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
            content = {"asked": asked, "figures": figures, "took": took, "with": self._with()}
            write(self.path(name), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return figures

    def took(self, name: str) -> dict[str, float]:
        """Seconds that measuring a cell took: `wall` and `processor`."""
        return json.loads(self.path(name).read_text("utf-8"))["took"]

    def __iter__(self) -> Iterator[str]:
        """The names of all cells that were measured."""
        found = sorted(self.folder.rglob("*.json")) if self.folder.is_dir() else []
        return (path.relative_to(self.folder).with_suffix("").as_posix() for path in found)

    def publish(self, text: str, name: str = "") -> Path:
        """Keep a table or a plot beside the cells, `results/PART.md` unless another name with its ending is given."""
        path = self.root / (name or f"{self.part}.md")
        write(path, text.rstrip("\n") + "\n")
        return path

    @staticmethod
    def _with() -> dict[str, object]:
        """What it ran on."""
        return {
            "version": __version__,
            "commit": commit_of(RESULTS.parents[1], apart_from=RESULTS),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        }


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.tmp")
    half.write_text(text, "utf-8")
    half.replace(path)


@functools.lru_cache
def commit_of(checkout: Path, *, apart_from: Path) -> str | None:
    """Short hash of the commit that a folder's code is of, with "+" where something in it is not in that commit.

    Asked once for a process, as its modules are read once: what is committed while it runs is not what it runs.

    Args:
        checkout: its top folder
        apart_from: a folder in it whose content does not count: that of the results, which a run itself writes

    Returns:
        None where the folder is no checkout's top folder, or there is no git
    """
    if not (checkout / ".git").exists():  # a copy of the code inside another project's checkout is not of its commits
        return None
    others = f":(exclude){apart_from.relative_to(checkout).as_posix()}"
    try:
        commit = _git(checkout, "rev-parse", "--short", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--", ".", others)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
