"""Fuzz one target with atheris (https://github.com/google/atheris), which is in no extra: `pip install atheris`.

    python -m tests.fuzz.run header -max_total_time=600 tests/fuzz/corpus/header

What ends it is written as crash-… where it is run. Once that is mended it belongs into the corpus, which every test run asks.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["lib_loraclr", "json"]):
    import json  # noqa: F401  (instrumented before anybody imports it)

    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
