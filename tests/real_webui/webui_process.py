"""A real WebUI in a process of its own, with a data folder of its own, that runs functions of `webui_answers.MODULES` inside.

Questions and answers are files in a folder, so that the tests open no connection (`conftest.no_network`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from programs import A1111, Program
from safetensors.torch import save_file

from tests import tiny_checkpoints as tiny
from tests import tiny_webui
from tests.tiny_checkpoints import Tiny

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"

#: settings, as they are by default: merges keep what they record
KEEPING = {"loraclr_work_limit": 2048}
#: an extension's script; what it imports stays loaded although the WebUI takes its folders off the path again
_HOOK = """\
import sys

from modules import script_callbacks

sys.path[:0] = {folders!r}
import webui_answers

webui_answers.{prepare}
script_callbacks.on_app_started(lambda demo, app: webui_answers.answer({mailbox!r}))
"""


class Failed(Exception):
    """A check raised inside the WebUI; the text is its traceback."""


class WebUI:
    """A running WebUI."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        settings: dict[str, Any] | None = None,
        api: bool = True,
        program: Program = A1111,
    ) -> None:
        """
        Args:
            folder: its data folder, with models in it; one that was closed may be started anew
            flags: of the command line, besides those for a run on the CPU
            api: whether `--api` is one of them
            program: which WebUI
        """
        self.folder, self.program, self._asked = folder, program, 0
        self.mailbox = folder / "mailbox"
        self.mailbox.mkdir(parents=True, exist_ok=True)
        for old in self.mailbox.iterdir():  # an answer of the process before would be taken for this one's
            old.unlink()
        # sorted before the extension that is tested
        hook = folder / "extensions" / "a-loraclr-checks" / "scripts" / "hook.py"
        hook.parent.mkdir(parents=True, exist_ok=True)
        folders = [str(ROOT), *(str(folder) for folder in Path(__file__).parents[:2])]
        hook.write_text(_HOOK.format(folders=folders, prepare=self._prepare(), mailbox=str(self.mailbox)), "utf-8")
        quiet = {"live_previews_enable": False, "samples_save": False, "grid_save": False}
        quiet["loraclr_work_limit"] = 0  # every merge is to do all that it does
        (folder / "config.json").write_text(json.dumps({**quiet, **(settings or {})}), "utf-8")
        self.log = folder / f"log-{len(list(folder.glob('log-*.txt')))}.txt"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self._command((*flags, *(("--api",) if api else ()))),
                cwd=program.folder,
                env=self.environment(program),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        # Forge Neo waits for Enter where the settings are not of its own version
        self._process.stdin.write(b"\n")
        self._process.stdin.close()

    def _prepare(self) -> str:
        """The call that makes it know the tests' checkpoints."""
        if self.program.forge:
            return f"recognise({str(DEMO / 'clip')!r}, {str(self.folder / 'huggingface')!r})"
        encoders = [str(file) for file in (self.folder / "open_clip").glob("*.json")]
        return f"register_text_encoders({encoders!r})"

    def _command(self, flags: tuple[str, ...]) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        offline = ["--skip-torch-cuda-test", "--skip-prepare-environment", "--skip-version-check"]
        self.port = int(port)
        own = ["--port", port, "--data-dir", str(self.folder)]
        return [self.program.python, "-u", "launch.py", *self.program.flags, *offline, *own, *flags]

    @staticmethod
    def environment(program: Program = A1111) -> dict[str, str]:
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        path = f"{Path(program.python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **offline, "PATH": path, "OMP_NUM_THREADS": "1"}

    def ask(self, check: str, *, seconds: float = 600, **arguments: Any) -> Any:
        """What the check of that name (`webui_answers.MODULES`) returns inside the WebUI.

        Raises:
            Failed: it raised, or the WebUI is gone
        """
        self._asked += 1
        question = self.mailbox / f"{self._asked}.question"
        answer = self.mailbox / f"{self._asked}.answer"
        draft = question.with_suffix(".draft")
        draft.write_text(json.dumps({"check": check, "arguments": arguments}), "utf-8")
        draft.replace(question)
        end = time.monotonic() + seconds
        while not answer.is_file():
            if self._process.poll() is not None or time.monotonic() > end:
                raise Failed(f"no answer to {check}; the end of the log:\n{self.log.read_text('utf-8')[-3000:]}")
            time.sleep(0.05)
        result = json.loads(answer.read_text("utf-8"))
        if "error" in result:
            raise Failed(result["error"])
        return result["value"]

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def tiny_models(folder: Path, *kinds: Tiny) -> None:
    """Put tiny checkpoints with random weights where a WebUI with this data folder finds them."""
    for kind in kinds:
        tiny_webui.put(kind, folder, DEMO / "clip")


def sdxl_models(folder: Path) -> None:
    """Put the tiny SDXL checkpoint where a WebUI with this data folder finds it."""
    tiny_models(folder, tiny.SDXL)


#: the layers that trainers adapt
_ADAPTED = re.compile(r"lora_te|_attn[12]_to_|_ff_net_|_proj_(in|out)$")


def tiny_loras(webui: WebUI, names: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Give a WebUI with a tiny checkpoint loaded random LoRAs for it; one named `…three` has the UNet's other names."""
    known = webui.ask("describe")
    # the WebUI itself does not read the other names that we know for text encoders
    others = {key: other for other, key in known["aliases"].items() if other.startswith("lora_unet_")}
    layers = {
        key: shape
        for key, shape in known["layers"].items()
        # a norm or a bias, whose one input is always 1, has no LoRA
        if _ADAPTED.search(key) and key not in known["idle"] and shape[1] > 1
    }
    for seed, name in enumerate(names):
        other = name.endswith("three")
        named = {others.get(key, key) if other else key: shape for key, shape in layers.items()}
        path = webui.folder / "models" / "Lora" / f"{name}.safetensors"
        random_lora(path, named, seed=seed, size=0.1, metadata=metadata)


def sdxl_loras(webui: WebUI, names: Sequence[str]) -> None:
    """Give a WebUI with the tiny SDXL checkpoint LoRAs for it."""
    tiny_loras(webui, names, {"ss_base_model_version": "sdxl_base_v1-0"})


def random_lora(
    path: Path, layers: Mapping[str, Sequence[int]], *, seed: int, size: float, metadata: Mapping[str, str]
) -> None:
    """A LoRA of rank 4 whose deltas are `size` times as large as the tiny checkpoint's random weights.

    Args:
        layers: key, in whatever style -> (d_out, d_in)
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, (d_out, d_in) in layers.items():
        tensors[f"{key}.lora_up.weight"] = torch.randn(d_out, 4, generator=generator) * size / 2
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, d_in, generator=generator) / d_in**0.5
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata))


def demo_models(folder: Path) -> None:
    """Put the demo checkpoint and its LoRAs where a WebUI with this data folder finds them."""
    checkpoints, loras = folder / "models" / "Stable-diffusion", folder / "models" / "Lora"
    checkpoints.mkdir(parents=True)
    (loras / "style").mkdir(parents=True)
    shutil.copy(DEMO / "emoji-sd1.safetensors", checkpoints)
    text = (DEMO / "emoji-sd1.yaml").read_text("utf-8")
    lines = [
        f"{line.split('version:')[0]}version: {DEMO / 'clip'}" if "version:" in line else line
        for line in text.splitlines()
    ]
    (checkpoints / "emoji-sd1.yaml").write_text("\n".join(lines), "utf-8")
    for file in (DEMO / "loras").glob("*.safetensors"):
        shutil.copy(file, loras / "style" if file.stem.startswith("style-") else loras)
