"""Baking into the checkpoint of every family: loaded again, it computes what the merge on the base does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lib_loraclr.files.tensor_files import write_tensors
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.baking import BakedCheckpoint
from tests import tiny_checkpoints as tiny
from tests.tiny_checkpoints import Tiny
from tests.tiny_hosts import Open, predict

KINDS = (*tiny.EVERY, tiny.SD2_V)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_layer_of_a_family_is_found_and_changed(opened: Open, tmp_path: Path, kind: Tiny) -> None:
    host = opened(kind)
    deltas = {}
    for key, layer in host.layers().items():
        d_out, d_in = layer.shape
        deltas[key] = Factors(torch.randn(d_out, 1) * 0.1, torch.randn(1, d_in) / d_in**0.5)
    baked = BakedCheckpoint(host.checkpoint_path, deltas, memory_mb=1)
    path = tmp_path / "baked.safetensors"
    with path.open("wb") as stream:
        write_tensors(stream, baked.tensors, lambda _: baked.metadata)
    config = host.checkpoint_path.with_suffix(".yaml")
    if config.is_file():
        shutil.copyfile(config, path.with_suffix(".yaml"))
    again = load(path)
    for key, layer in again.layers().items():
        before = host.layers()[key].weight
        expected = before.reshape(len(before), -1) + deltas[key].dense()
        # the file may keep the weight in half precision
        torch.testing.assert_close(layer.weight.reshape(expected.shape), expected, rtol=2e-3, atol=1e-4, msg=key)
    with torch.no_grad(), host.apply(deltas):
        merged = predict(host, "a cat")
    with torch.no_grad():
        found, plain = predict(again, "a cat"), predict(host, "a cat")
    effect = float((merged - plain).norm())
    assert float((found - merged).norm()) < 0.02 * effect
    assert effect > 0.05 * float(plain.norm()), "control: the merge does something"
