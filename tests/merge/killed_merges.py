"""A process whose merges are killed, each a process of its own, and what became of them; run by `test_keeping.py`.

    python -m tests.merge.killed_merges FOLDER SEED KILLS

It prints JSON: the stage in which each was killed; how many moments each stage of a whole merge has, and of those that went on;
and digests of the bytes of a merge that nobody killed, without a work folder and with one, and of those that went on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from lib_loraclr.files.lora_files import serialize
from lib_loraclr.files.work_folder import WorkFolder
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.hosts.diffusers.host import DiffusersHost
from lib_loraclr.merge import merge_loras, stage_plan, stages
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.output.saving import lora_metadata
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.refining import state
from lib_loraclr.request.merge_request import MergeRequest
from tests import tiny_checkpoints as tiny
from tests.tiny_hosts import random_merge

OPTIONS = {"steps": 12, "batch_size": 2, "scenes": 2, "rollouts": 1, "learning_rate": 0.002}


class Moments(Progress):
    """Counts the moments of a merge, those in which a file is about to be written among them, and kills the process in one."""

    def __init__(self, path: Path, last: int | None) -> None:
        """
        Args:
            path: where the stages of all moments are written
            last: moment in which the process is killed, from 0 on
        """
        self._path, self._last, self._stage, self._seen = path, last, "", []
        fsync = os.fsync

        def moment(stream: int) -> None:
            self.advance()
            fsync(stream)

        os.fsync = moment

    def start(self, stage: Stage, total: int) -> None:
        self._stage = stage.name

    def advance(self, units: int = 1, note: str = "") -> None:
        self._seen.append(self._stage)
        if len(self._seen) - 1 == self._last:
            self.write()
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self) -> None:
        self._path.write_text(json.dumps(self._seen))


def merged(asked: MergeRequest, host: DiffusersHost, work: WorkFolder | None, told: Progress) -> bytes:
    merge = merge_loras(asked, host, told, work=work)
    checks = json.dumps(merge.report.refinement["checks"]).encode()
    return serialize(lora_tensors(merge), lora_metadata(merge, "merged")) + checks


def in_child(run: Callable[[], None]) -> int:
    """Runs in a process of its own, forked before anything was computed backward.

    Returns:
        how it ended, as of `os.waitpid`
    """
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            run()
            failed = 0
        finally:
            if failed:
                sys.excepthook(*sys.exc_info())
            os._exit(failed)
    return os.waitpid(child, 0)[1]


def main(folder: Path, seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    # every step is kept, and a child shares what was drawn with nobody
    state.EVERY = state.SPARED = 0.0
    stage_plan.MEASURE_PATHS, stage_plan.MEASURE_STEPS = 1, 4
    stage_plan.STOP_PATHS, stage_plan.STOP_STEPS = 1, 2
    stage_plan.RECORDED_PROMPTS = stages.RECORDED_PROMPTS = 16
    host = load(tiny.SD1.write(folder))
    asked, drawn = random_merge(folder, host, 1, 2, options=OPTIONS), random.Random(seed)

    def run(name: str, work: WorkFolder | None, last: int | None = None) -> None:
        moments = Moments(folder / f"{name}.stages", last)
        (folder / name).write_bytes(merged(asked, host, work, moments))
        moments.write()

    def stages_of(name: str) -> list[str]:
        return json.loads((folder / f"{name}.stages").read_text())

    def digest(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    assert in_child(lambda: run("alone", None)) == 0
    assert in_child(lambda: run("kept", WorkFolder(folder / "kept-work"))) == 0
    moments = stages_of("kept")
    killed, went_on, repeated = [], [], []
    for k in range(kills):
        # every stage but the first, in which nothing is made yet, in turn; some have many more moments than others
        names = [name for name in dict.fromkeys(moments) if name != Stage.READING.name]
        wanted = names[(seed + k * len(names) // kills) % len(names)]
        last = drawn.choice([moment for moment, name in enumerate(moments) if name == wanted])
        work = WorkFolder(folder / f"work{k}")
        assert in_child(lambda k=k, last=last, work=work: run(f"killed{k}", work, last)) == signal.SIGKILL
        killed.append(stages_of(f"killed{k}")[-1])
        assert in_child(lambda k=k, work=work: run(f"on{k}", work)) == 0
        went_on.append(digest(f"on{k}"))
        repeated.append(Counter(stages_of(f"on{k}")))
    told = {"killed": killed, "moments": Counter(moments), "repeated": repeated}
    told |= {"alone": digest("alone"), "kept": digest("kept"), "went on": went_on}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
