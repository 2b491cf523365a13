"""The WebUIs that are tested in, where the environment names one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Program:
    """One of the WebUIs that are tested in.

    Attributes:
        variable: of the environment, with its folder; with `_PYTHON` in place of `_DIR`, its interpreter
        flags: of the command line, for a run on the CPU
        forge: whether it is of the Forge family
        lora: folder of its built-in extension for LoRAs
    """

    variable: str
    flags: tuple[str, ...]
    forge: bool = True
    lora: str = "sd_forge_lora"

    @property
    def missing(self) -> str:
        """Why it cannot be tested in, or nothing."""
        return "" if self.variable in os.environ else f"{self.variable} names no WebUI to test in"

    @property
    def folder(self) -> Path:
        """Where it is; never fetched."""
        return Path(os.environ[self.variable])

    @property
    def python(self) -> str:
        return os.environ.get(self.variable.replace("_DIR", "_PYTHON"), sys.executable)


A1111 = Program(
    "LORACLR_WEBUI_DIR",
    ("--use-cpu", "all", "--no-half", "--precision", "full", "--no-download-sd-model"),
    forge=False,
    lora="Lora",
)
FORGE = Program("LORACLR_FORGE_DIR", ("--always-cpu", "--no-hashing"))
NEO = Program("LORACLR_NEO_DIR", ("--cpu", "--no-hashing"))
REFORGE = Program("LORACLR_REFORGE_DIR", ("--always-cpu", "--no-hashing"), lora="Lora")


def parameters(**programs: Program) -> list:
    """For `pytest.mark.parametrize` or a fixture: each program by its name, skipped where it is not here."""
    return [
        pytest.param(program, id=name, marks=pytest.mark.skipif(bool(program.missing), reason=program.missing))
        for name, program in programs.items()
    ]


FAMILY = parameters(forge=FORGE, neo=NEO, reforge=REFORGE)
EVERY = [*parameters(a1111=A1111), *FAMILY]
