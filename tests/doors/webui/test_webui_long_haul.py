"""Fifty merges in one process: kept, replaced, put back, discarded, interrupted and failed, with nothing growing."""

from __future__ import annotations

import gc
import itertools
import threading
from typing import Any

import pytest
import torch
from test_webui_jobs import files, job
from webui_doors import Doors, doors  # noqa: F401  (a fixture)

from lib_loraclr.errors import Interrupted, LoraclrError

MERGES, SETTLED = 50, 10


def alive() -> dict[str, int]:
    """What could grow: bytes of tensors, objects of ours, hooks, threads."""
    while gc.collect():
        pass
    objects = gc.get_objects()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in objects if _is_tensor(item)
    }
    ours = sum(str(type(item).__module__).startswith("lib_loraclr") for item in objects)
    hooks = sum(len(item._forward_hooks) + len(item._forward_pre_hooks) for item in objects if _is_module(item))
    return {"tensors": sum(storages.values()), "objects": ours, "hooks": hooks, "threads": threading.active_count()}


def _is_tensor(item: Any) -> bool:
    return type(item) in (torch.Tensor, torch.nn.Parameter)


def _is_module(item: Any) -> bool:
    return issubclass(type(item), torch.nn.Module)


def test_fifty_merges_leave_no_more_than_ten(doors: Doors) -> None:  # noqa: F811
    jobs, counts = doors.module("jobs"), []
    model = doors.webui.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number, ending in zip(range(1, MERGES + 1), itertools.cycle(ENDINGS), strict=False):
        made = job(doors, "fox", "penguin", draw=number % 7 == 0)
        made.owner = f"owner {number % 3}"
        ending(doors, jobs, made)
        if number in (SETTLED, MERGES):
            del made
            counts.append(alive())
    ten, fifty = counts
    assert fifty["tensors"] <= 1.02 * ten["tensors"]
    assert fifty["hooks"] == ten["hooks"] and fifty["threads"] == ten["threads"]
    assert len(jobs._jobs) <= jobs._REMEMBERED and fifty["objects"] <= 4 * ten["objects"], "as many as are remembered"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not doors.webui.call_queue.queue_lock.locked() and not doors.reported
    others = {name for name in files(doors.folder) if not name.startswith((".", "pair."))}
    assert others == {"animals/penguin.safetensors", "big.safetensors", "fox.safetensors"}
    jobs.unload()
    assert not [name for name in files(doors.folder) if name.startswith(".")]


def kept(doors: Doors, jobs: Any, made: Any) -> None:  # noqa: F811
    jobs.run(made, lock_held=False)
    jobs.keep(made, "pair", overwrite=True)


def put_back(doors: Doors, jobs: Any, made: Any) -> None:  # noqa: F811
    kept(doors, jobs, made)
    jobs.put_back(made)


def discarded(doors: Doors, jobs: Any, made: Any) -> None:  # noqa: F811
    jobs.run(made, lock_held=False)
    jobs.discard(made)


def forgotten(doors: Doors, jobs: Any, made: Any) -> None:  # noqa: F811
    jobs.run(made, lock_held=False)


def interrupted(doors: Doors, jobs: Any, made: Any) -> None:  # noqa: F811
    jobs.interrupt(made)
    with pytest.raises(Interrupted):
        jobs.run(made, lock_held=False)


def failed(doors: Doors, jobs: Any, made: Any) -> None:  # noqa: F811
    made.request.options["no such option"] = 1
    with pytest.raises(LoraclrError):
        jobs.run(made, lock_held=False)


ENDINGS = (kept, put_back, discarded, forgotten, interrupted, failed)
