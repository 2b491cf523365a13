"""What a merge could leave behind in a model and in memory: looked at by the tests here and, inside it, in a real WebUI."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def digest(models: Iterable[nn.Module]) -> str:
    """SHA-256 of every tensor of the models' state dicts, with its name."""
    found = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def count_hooks(models: Iterable[nn.Module]) -> int:
    """Hooks of every kind that torch knows, on every module of the models."""
    return sum(
        len(registry)
        for model in models
        for module in model.modules()
        for name, registry in vars(module).items()
        if "hooks" in name and isinstance(registry, dict)
    )


def tensor_bytes() -> int:
    """Of all tensors that are alive, each storage counted once."""
    for _ in range(5):  # a generator that is ended by the first collection lets go of its frame in the next
        if not gc.collect():
            break
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, nn.Parameter):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
