"""What the tests let the host adapter do inside the real WebUI: merge, refine, be interrupted, and leave all as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from webui_checks import deltas, describe, gradients_of, loaded_modules, predict, webui_loaded
from webui_pictures import get, picture, pixels, post, settings

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import running
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.output.saving import save_merge
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.request.merge_request import MergeRequest
from lib_loraclr.request.output_names import output_path


def untouched(prompt: str, work: str, names: Sequence[str], functional: bool = False, **changes: Any) -> dict[str, Any]:
    """The same picture before and after a piece of work; and whether anything of ours is left on the model."""
    with settings(lora_functional=functional):
        before = picture(prompt, **changes)
        flags = _traces()
        outcome = _WORKS[work](list(names))
        traces = _traces() == flags and not _hooks()
        return {"same": picture(prompt, **changes) == before, "outcome": outcome, "clean": traces}


def _traces() -> list[Any]:
    from modules import shared

    model, whole = shared.sd_model, loaded_modules()
    # those with a LoRA in them are others in Forge, and may be trainable; forge_checks looks at that
    same = whole is model
    trainable = [name for name, parameter in whole.named_parameters() if parameter.requires_grad and same]
    gradients = [name for name, parameter in whole.named_parameters() if parameter.grad is not None]
    shadows = [
        name
        for name, module in whole.named_modules()
        if {"in_proj_weight", "forward"} & set(vars(module)) or vars(module).get("weight") is not None
    ]
    embedders = [
        getattr(e, "is_trainable", None) for e in getattr(getattr(model, "conditioner", None), "embedders", ())
    ]
    return [trainable, gradients, shadows, embedders, whole.training]


def _hooks() -> list[str]:
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.MultiheadAttention)
    return [
        name
        for name, module in loaded_modules().named_modules()
        if isinstance(module, layers) and (module._forward_hooks or module._forward_pre_hooks)
    ]


class _StopAfter(Progress):
    def __init__(self, evaluations: int) -> None:
        self.left = evaluations

    def interrupted(self) -> bool:
        self.left -= 1
        return self.left <= 0


def request(names: Sequence[str], **changes: Any) -> MergeRequest:
    """A merge that takes seconds."""
    concepts = [{"lora": str(running.find_lora(name).path), "trigger": trigger} for name, trigger in names]
    small = {"recording": {"paths": 2, "steps": 2, "height": 128, "width": 128}, "memory_mb": 200}
    return MergeRequest.from_dict({"concepts": concepts, **small, **changes})


def _merge_work(names: list) -> str:
    with running.session() as host:
        merge_loras(request([(name, f"trigger{i}") for i, name in enumerate(names)], method="average"), host)
    return "merged"


def _refine_work(names: list) -> str:
    few = {"effort": "balanced", "steps": 2, "batch_size": 2}
    with running.session() as host:
        named = [(name, f"trigger{i}") for i, name in enumerate(names)]
        report = merge_loras(request(named, options=few, memory_mb=2000), host).report
    return f"refined in {report.refinement['steps']} steps"


def _interrupt_work(names: list) -> str:
    try:
        with running.session() as host:
            merge_loras(request([(name, f"trigger{i}") for i, name in enumerate(names)]), host, _StopAfter(5))
    except Interrupted:
        return "interrupted"
    return "finished"


def _error_work(names: list) -> str:
    try:
        with running.session() as host, host.apply(deltas(host, names[0])):
            gradients_of(host, names[0])
            raise LoraclrError("on purpose")
    except LoraclrError as error:
        return str(error)


_WORKS = {"merge": _merge_work, "refine": _refine_work, "interrupt": _interrupt_work, "error": _error_work}


def interrupted_by_button(names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The WebUI's own Interrupt, while a merge runs: what the bar showed, and how many evaluations of the model began
    after it."""
    from modules import shared

    pressed: dict[str, Any] = {}

    def press() -> None:
        time.sleep(2)
        pressed.update(text=shared.state.textinfo, progress=get("progress")["progress"])
        post("interrupt", {})
        pressed["at"] = time.monotonic()

    threading.Thread(target=press, daemon=True).start()
    try:
        with running.session(job="a test") as host:
            begun, denoise = [], host.denoise
            host.denoise = lambda *given: begun.append(time.monotonic()) or denoise(*given)
            progress = running.StateProgress({Stage.RECORDING: 60.0, Stage.REFINING: 60.0})
            recording = {"paths": 8, "steps": 16, "height": 128, "width": 128}
            merge_loras(request([tuple(pair) for pair in names], recording=recording), host, progress)
    except Interrupted:
        late = sum(moment > pressed["at"] for moment in begun)
        return {**pressed, "late": late, "job_after": shared.state.job, "lock_free": _lock_is_free()}
    return {"finished": True}


def _lock_is_free() -> bool:
    from modules import call_queue

    with call_queue.queue_lock:
        return True


# -- merging


def merge(
    names: Sequence[Sequence[str]], output: str | None = None, overwrite: bool = False, **changes: Any
) -> dict[str, Any]:
    """Merge, and with `output` keep the file; retention, and how the file compares with the result in memory."""
    with running.session() as host:
        progress = running.StateProgress()
        done = merge_loras(request([tuple(pair) for pair in names], **changes), host, progress)
        result = {"concepts": [asdict(c) for c in done.report.concepts], "layers": done.report.layers}
        if output is None:
            return result
        path = output_path(running.lora_dir(), output)
        save_merge(done, path, overwrite=overwrite)
        described = running.announce(path, lock_held=True)
        base = predict(host)
        with host.apply(done.factors):
            memory = predict(host)
        with webui_loaded([described.alias], [1.0], [1.0]):
            file = predict(host)
        result["file"] = {
            "error": float((memory - file).abs().max()),
            "effect": float((memory - base).abs().max()),
            "alias": described.alias,
            "family": described.family,
        }
        return result


def saved_ways(names: Sequence[Sequence[str]], prompt: str, **changes: Any) -> dict[str, float]:
    """One merge as a full file and in a copy of the checkpoint: how far their pictures are from each other, mean of 0..255."""
    with running.session() as host:
        done = merge_loras(request([tuple(pair) for pair in names], save_as="checkpoint", **changes), host)
        baked = output_path(running.checkpoint_dir(), running.free_checkpoint_name("baked"))
        save_merge(done, baked)
        full = replace(done, request=replace(done.request, save_as="full", precision="fp32"))
        save_merge(full, output_path(running.lora_dir(), "whole"), overwrite=True)
        running.announce(output_path(running.lora_dir(), "whole"), lock_held=True)
        listed = running.announce_checkpoint(baked)
    before = describe()["checkpoint"]
    base, tagged = pixels(prompt).astype(int), pixels(f"{prompt} <lora:whole:1>").astype(int)
    try:
        post("options", {"sd_model_checkpoint": listed.title})
        switched = describe()["checkpoint"]
        copied = pixels(prompt).astype(int)
    finally:
        post("options", {"sd_model_checkpoint": before})
    again = pixels(prompt).astype(int)
    return {
        "checkpoint": switched,
        "effect": float(abs(tagged - base).mean()),
        "apart": float(abs(copied - tagged).mean()),
        "base_again": float(abs(again - base).max()),
    }


def library() -> list[dict[str, Any]]:
    return [
        {name: str(getattr(lora, name)) for name in ("name", "trigger", "family", "folder", "preview")}
        for lora in running.installed_loras()
    ]


def free_name(wanted: str, sub_folder: str = "") -> str:
    return running.free_name(wanted, sub_folder)
