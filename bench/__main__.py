"""`python -m bench PART`: the whole benchmark, one part after the other, or one of them.

Cells that were measured are not measured again. What each part is for stands in its own file.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from bench.cells import RESULTS

#: part -> what it measures; those of `DEFAULT` run when none is named
PARTS = {
    "quality": "what is left of each concept, alone and together, for every method",
    "speed": "solving a layer of the real size, and a step of the refinement",
    "memory": "memory of a whole merge at the real sizes, against what keeping all features would take",
    "ablation": "what each piece of the method is worth",
    "styles": "styles on subjects",
    "many": "many concepts, at once and in groups",
    "processes": "a merge by one, two and four processes",
    "card": "a first day on a graphics card",
    "places": "two concepts in one picture in a running WebUI, with and without Regional Prompter",
    "rate": "what people say: a page for this machine's browser",
}
DEFAULT = ("quality", "speed", "memory", "ablation")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of cells, tables and plots")
    parser.add_argument("--full", action="store_true", help="everything; may take a night or two")
    commands = parser.add_subparsers(dest="part", metavar="PART")
    modules = {}
    for part, purpose in PARTS.items():
        modules[part] = importlib.import_module(f"bench.{part}")
        own = commands.add_parser(part, help=purpose, description=modules[part].__doc__.splitlines()[0])
        # said before or after the part
        own.add_argument("--results", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        own.add_argument("--full", action="store_true", default=argparse.SUPPRESS, help="everything")
        modules[part].add_arguments(own)
    asked = parser.parse_args(arguments)
    for part in [asked.part] if asked.part else DEFAULT:
        whole = [*(["--full"] if asked.full else []), "--results", str(asked.results)]
        modules[part].main(asked if asked.part else parser.parse_args([*whole, part]))


if __name__ == "__main__":
    main()
