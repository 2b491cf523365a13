"""Progress on a terminal, and what several commands share."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ...errors import LoraclrError
from ...model import Host
from ...progress import Progress, Stage
from .launched import card, talks


class ConsoleProgress(Progress):
    """A bar per stage, for stages that last; lines above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def start(self, stage: Stage, total: int) -> None:
        self.close()
        self._bar = tqdm(
            total=total, desc=stage.value, delay=1, leave=False, dynamic_ncols=True, unit="", file=sys.stderr
        )

    def advance(self, units: int = 1, note: str = "") -> None:
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note[-40:], refresh=False)
            self._bar.update(units)
        super().advance(units, note)

    def log(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, and where and how it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="Stable Diffusion checkpoint (1.x, 2.x, XL, refiner, also for inpainting): a .safetensors file (its .yaml beside "
        "it, if it has one) or a diffusers folder",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 or mps (default: auto)")
    group.add_argument(
        "--model-precision",
        default="auto",
        choices=("auto", "fp16", "bf16", "fp32"),
        help="of the loaded checkpoint (default: fp16 on a graphics card, fp32 on the CPU)",
    )


def load_host(arguments: argparse.Namespace) -> Host:
    """The stand-alone host.

    Raises:
        LoraclrError: no checkpoint named, no such device, or diffusers is not installed
    """
    if not arguments.checkpoint:
        raise LoraclrError("No checkpoint is named: give one with --checkpoint FILE.")
    if not Path(arguments.checkpoint).exists():
        raise LoraclrError(f"There is no checkpoint {arguments.checkpoint}: check the name and the folder.")
    try:
        from ...hosts.diffusers import load
    except ImportError as error:
        raise LoraclrError(
            f"{error.name} is not installed: the command line needs it (pip install 'loraclr[cli]')."
        ) from error
    device = _device(arguments.device)
    precision = arguments.model_precision
    if precision == "auto":
        precision = "fp32" if torch.device(device).type == "cpu" else "fp16"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    told = sys.stderr if talks() else io.StringIO()
    print(f"loading {arguments.checkpoint} …", file=told, flush=True)
    host = load(arguments.checkpoint, device=device, dtype=dtype)
    print(f"{arguments.checkpoint}: {host.description}", file=told, flush=True)
    return host


def _device(name: str) -> str:
    """The device of that name, if it is one and works.

    Raises:
        LoraclrError: it is none, or does not work
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return "cuda" if card() is None else f"cuda:{card() % torch.cuda.device_count()}"
    try:
        torch.device(name)
    except RuntimeError:  # whose text lists every backend that torch was ever built for
        raise LoraclrError(f"There is no device {name!r}: give auto, cpu, cuda, cuda:0 or mps.") from None
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise LoraclrError(f"The device {name!r} cannot be used here ({reason}): try --device cpu.") from None
    return name
