#!/usr/bin/env python3
"""Everything from a fresh clone: `python dev.py demo` runs the product, `test` checks it, `bench` measures it.

Needs only Python 3.10+ with pip; makes its own environment in `.venv`. Packages come from wherever pip is set up to get them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Named first and alone: a range would let pip take a newer build than the one this was tested with.
TORCH = "torch==2.13.0"


def set_up() -> None:
    """Make the environment, or bring it up to date if pyproject.toml or this file changed."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp = ENVIRONMENT / "loraclr-stamp"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print("setting up .venv (once; torch is a large download) …", flush=True)
    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, TORCH])
    run([*pip, "--editable", f"{ROOT}[cli,test]"])
    stamp.write_text(wanted)


def run(command: list[str]) -> None:
    """Run a command in the repository; leave with its exit code if it fails."""
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


def demo(arguments: argparse.Namespace) -> None:
    """Merge four of the demo's concepts (all twelve with --all) on the demo checkpoint."""
    name = "all-twelve" if arguments.all else "four-friends"
    command = [
        *("merge", "--checkpoint", "demo/emoji-sd1.safetensors", "--request", f"demo/{name}.json"),
        *("--output", f"demo-output/{name}.safetensors", "--overwrite", "--report"),
        *("--effort", arguments.effort),
    ]
    print("$ loraclr " + " ".join(command), flush=True)
    run([str(PYTHON), "-m", "lib_loraclr", *command])
    print(f"\nThe picture: {ROOT / 'demo-output' / name}.report.png")
    print("Try your own: .venv/bin/python -m lib_loraclr merge --help")


def test(arguments: argparse.Namespace) -> None:
    """Lint, then run the whole test suite."""
    python = [str(PYTHON), "-m"]
    run([*python, "ruff", "check", "."])
    run([*python, "ruff", "format", "--check", "."])
    run([*python, "pytest", *arguments.rest])


def bench(arguments: argparse.Namespace) -> None:
    """Measure quality, speed and memory (docs/bench.md)."""
    run([str(PYTHON), "-m", "bench", *arguments.rest])


def rate(arguments: argparse.Namespace) -> None:
    """Rate merges blindly on a local page, and export what was said."""
    run([str(PYTHON), "-m", "bench", "rate", *arguments.rest])


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  (an older Python reads this file too, and deserves a reason)
        sys.exit(f"Python {sys.version.split()[0]} is too old: run this with Python 3.10 or newer.")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="demo|test|bench|rate")
    own = commands.add_parser("demo", help=demo.__doc__)
    own.add_argument("--all", action="store_true", help="all twelve concepts")
    own.add_argument("--effort", default="balanced", help="layers, fast, balanced or thorough")
    own.set_defaults(action=demo)
    own = commands.add_parser("test", help=test.__doc__, usage="dev.py test [what pytest takes …]", add_help=False)
    own.set_defaults(action=test)
    for name, action in (("bench", bench), ("rate", rate)):
        own = commands.add_parser(name, help=action.__doc__, usage=f"dev.py {name} […]", add_help=False)
        own.set_defaults(action=action)
    arguments, arguments.rest = parser.parse_known_args()
    if arguments.rest and arguments.action is demo:
        parser.error(f"unknown: {' '.join(arguments.rest)}")
    set_up()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
