"""Faults let into merges inside the real WebUI, one of each kind, and all that could be left behind by one."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from webui_checks import loaded_modules
from webui_pictures import picture, post
from webui_work import _traces, request

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import running
from lib_loraclr.hosts.a1111.host import A1111Host
from lib_loraclr.merge import layer_merging, stage_plan, stages
from lib_loraclr.progress import Stage
from tests.leftovers import count_hooks, digest, tensor_bytes

#: of the data folder: the tests' own questions, and what the WebUI keeps for itself
_NOT_OURS = ("mailbox", "log-", "cache", "config", "ui-config", "extensions")
#: so little is recorded and measured that a merge takes seconds
_LITTLE = {"MEASURE_PATHS": 1, "MEASURE_STEPS": 2, "STOP_PATHS": 1, "STOP_STEPS": 2, "SCALE_POINTS": 2}


def look() -> dict[str, Any]:
    """All that a merge could leave behind."""
    from modules import call_queue, paths_internal

    whole, folder = loaded_modules(), Path(paths_internal.data_path)
    free = call_queue.queue_lock.acquire(blocking=False)
    if free:
        call_queue.queue_lock.release()
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        "weights": digest([whole]),
        "hooks": count_hooks([whole]),
        "traces": _traces(),
        "lock free": free,
        "files": sorted(path for path in files if not path.startswith(_NOT_OURS)),
        "memory": tensor_bytes(),
    }


def pictures(prompts: Sequence[str]) -> list[str]:
    """Hashes of the pixels; a prompt without tags is to come last, for the WebUI leaves a LoRA in the weights until the next."""
    return [picture(prompt) for prompt in prompts]


def resident() -> int:
    """Bytes of RAM that the WebUI has, the whole process."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * resource.getpagesize()


@dataclass
class _Merge:
    """A merge that something happens in.

    Attributes:
        job: that is merged
        stage: that it is in
        switched: the thread that waits until the checkpoint is another
    """

    job: Any
    stage: Stage | None = None
    switched: list[threading.Thread] = field(default_factory=list)

    @property
    def lora(self) -> Path:
        return Path(self.job.request.concepts[0].lora)


def _raises(error: Callable[[], BaseException]) -> Callable[[_Merge], None]:
    def happens(_: _Merge) -> None:
        raise error()

    return happens


def _interrupt(merge: _Merge) -> None:
    from lib_loraclr.doors.webui import jobs

    jobs.interrupt(merge.job)


def _switch(merge: _Merge) -> None:
    """As the menu at the top left does, which waits for the queue: in a thread of its own."""
    waiting = threading.Thread(target=post, args=("options", {"sd_model_checkpoint": "other.safetensors"}))
    waiting.start()
    merge.switched.append(waiting)


_broken = _raises(lambda: RuntimeError("CUDA error: an illegal memory access was encountered"))
_full = _raises(lambda: torch.cuda.OutOfMemoryError("CUDA out of memory."))
#: kind of fault -> the stage that it happens in, what happens, and whether it does again at every later moment of the stage
FAULTS: dict[str, tuple[Stage, Callable[[_Merge], None], bool]] = {
    "the host raises in recording": (Stage.RECORDING, _broken, False),
    "the host raises in solving": (Stage.UNET_LAYERS, _broken, False),
    "the host raises in refining": (Stage.REFINING, _broken, False),
    "the host raises in measuring": (Stage.MEASURING, _broken, False),
    "the host raises in drawing": (Stage.DRAWING, _broken, False),
    "the card is full in recording": (Stage.RECORDING, _full, True),
    "the card is full in refining": (Stage.REFINING, _full, True),
    "the RAM is full in solving": (Stage.UNET_LAYERS, _raises(MemoryError), False),
    "interrupted": (Stage.REFINING, _interrupt, False),
    "the checkpoint is switched": (Stage.RECORDING, _switch, False),
    "a LoRA is replaced": (Stage.RECORDING, lambda merge: merge.lora.write_bytes(b"something else"), False),
    "a LoRA is deleted": (Stage.RECORDING, lambda merge: merge.lora.unlink(), False),
    "nothing": (Stage.RECORDING, lambda _: None, False),
}
#: at which moment of its stage
_MOMENT = 2


@contextmanager
def _let_in(fault: str, merge: _Merge) -> Iterator[None]:
    """The fault at its moment: an evaluation of the model, or a layer that is solved."""
    from lib_loraclr.doors.webui import making

    where, happens, again = FAULTS[fault]
    begin, seen = making.JobProgress.start, 0

    def start(progress: Any, stage: Stage, total: int) -> None:
        merge.stage = stage
        begin(progress, stage, total)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            nonlocal seen
            if merge.stage is where:
                seen += 1
                if seen == _MOMENT or (again and seen > _MOMENT):
                    happens(merge)
            return function(*given, **named)

        return counted

    with ExitStack() as stack:
        stack.enter_context(patch.object(making.JobProgress, "start", start))
        stack.enter_context(patch.object(A1111Host, "denoise", around(A1111Host.denoise)))
        stack.enter_context(patch.object(layer_merging, "merge_layer", around(layer_merging.merge_layer)))
        stack.enter_context(little())
        yield
    assert seen >= _MOMENT, f"{where} has no such moment"


@contextmanager
def little() -> Iterator[None]:
    """Merges learn from and measure on less than a user's; it is the same code."""
    with ExitStack() as stack:
        for name, number in _LITTLE.items():
            stack.enter_context(patch.object(stage_plan, name, number))
        for module in (stage_plan, stages):
            stack.enter_context(patch.object(module, "RECORDED_PROMPTS", 4))
        stack.enter_context(patch.object(stages, "RECORDED_POINTS", 4))
        yield


def spare() -> None:
    """From now on, what pages of the tab begin does so too."""
    _left.append(little())
    _left[-1].__enter__()


def new_job(names: Sequence[Sequence[str]], *, draw: bool, **changes: Any) -> Any:
    """A job of the tab's and HTTP's, for these LoRAs and trigger words."""
    from lib_loraclr.doors.webui import jobs

    asked = request([tuple(pair) for pair in names], **changes)
    return jobs.Job(asked, tuple(name for name, _ in names), draw)


def let_fail(fault: str, names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A merge with this fault, through the same door as the tab's and HTTP's; its result, if there is one, is discarded.

    Returns:
        what became of it, and of a checkpoint that was chosen meanwhile
    """
    from modules import shared

    from lib_loraclr.doors.webui import jobs

    chosen = shared.sd_model.sd_checkpoint_info.title
    few = {"options": {"effort": "balanced", "steps": 2, "batch_size": 2}, "memory_mb": 2000}
    merge = _Merge(new_job(names, draw=True, **few))
    content = merge.lora.read_bytes()
    try:
        with _let_in(fault, merge):
            jobs.run(merge.job, lock_held=False)
    except (Exception, Interrupted) as error:  # noqa: BLE001  (whatever was let in)
        error.__traceback__ = error.__context__ = error.__cause__ = None  # which hold every frame with its tensors
    finally:
        merge.lora.write_bytes(content)
    found = {"state": merge.job.state, "error": merge.job.error, "stage": merge.stage.value}
    for waiting in merge.switched:
        waiting.join()
        found["switched to"] = shared.sd_model.sd_checkpoint_info.title
        post("options", {"sd_model_checkpoint": chosen})
    if merge.job.result:
        found["warnings"] = list(merge.job.result.merge.report.warnings)
        jobs.discard(merge.job)
    return found


def fill_the_disk(names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A disk that is full while a merge is kept."""
    from lib_loraclr.doors.webui import jobs

    job = new_job(names, draw=True, method="average")
    with little():
        jobs.run(job, lock_held=False)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = ""
    with patch.object(os, "fsync", full):
        try:
            jobs.keep(job, "too-much")
        except LoraclrError as error:
            told = str(error)
    found = {"state": job.state, "error": told}
    jobs.discard(job)
    return found


def settle() -> list[str]:
    """Wait for what runs; the states of all jobs that are known, with what has to be decided on discarded."""
    from modules import call_queue

    from lib_loraclr.doors.webui import jobs

    with call_queue.queue_lock:
        known = list(jobs._jobs.values())
    states = [job.state for job in known]
    for job in known:
        if job.state == "finished":
            jobs.discard(job)
    return states


def leave_behind(what: str) -> None:
    """The control: something that `look` has to see."""
    layer = next(module for module in loaded_modules().modules() if isinstance(module, torch.nn.Linear))
    if what == "hooks":
        _left.append(layer.register_forward_hook(lambda *_: None))
    elif what == "weights":
        with torch.no_grad():
            _left.append(layer.weight.view(-1)[0].clone())
            layer.weight.view(-1)[0] += 1
    elif what == "memory":
        _left.append(torch.zeros(tensor_bytes() // 16))
    else:
        (Path(running.lora_dir()) / ".zoo.safetensors.tmp").write_bytes(b"")


_left: list[Any] = []


def take_back(what: str) -> None:
    layer = next(module for module in loaded_modules().modules() if isinstance(module, torch.nn.Linear))
    if what == "files":
        (Path(running.lora_dir()) / ".zoo.safetensors.tmp").unlink()
        return
    left = _left.pop()
    if what == "hooks":
        left.remove()
    elif what == "weights":
        with torch.no_grad():
            layer.weight.view(-1)[0] = left
