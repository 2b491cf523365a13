"""The benchmarks' hosts of shapes: what nobody runs for weeks must still be a host when somebody does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import memory, sdxl
from bench.shapes import SD15, SDXL, Architecture, ShapesHost
from lib_loraclr.model.host import Host
from lib_loraclr.progress import Stage

#: the architectures at a hundredth of their widths, and so of their time; everything else is theirs
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_UNET = {"block_out_channels": (32, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 2, "norm_num_groups": 8}


def small(architecture: Architecture) -> Architecture:
    encoders = {prefix: (kind, _TEXT) for prefix, (kind, _) in architecture.text_encoders.items()}
    unet = {**architecture.unet, **_UNET}
    if architecture is SD15:
        unet |= {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        }
    else:
        unet |= {"transformer_layers_per_block": (1, 1, 2), "projection_class_embeddings_input_dim": 32 + 6 * 256}
    added = (32, 6) if architecture.added else None
    return replace(architecture, unet=unet, text_encoders=encoders, context=32, added=added)


def members() -> set[str]:
    """What the protocol asks for."""
    return {name for name in (*Host.__annotations__, *vars(Host)) if not name.startswith("_")}


@pytest.mark.parametrize("architecture", [SD15, SDXL], ids=lambda architecture: architecture.name)
def test_a_host_of_shapes_has_everything_that_a_host_has(architecture: Architecture):
    assert [name for name in sorted(members()) if not hasattr(ShapesHost(small(architecture)), name)] == []


def test_time_and_memory_of_sdxl_are_told_for_every_number_of_concepts(tmp_path: Path, capsys):
    host = ShapesHost(small(SDXL), substitute=False)
    runs = [sdxl.merge(host, tmp_path, number, budget=256) for number in (1, 2)]
    assert [run.report.rank[2] <= sdxl.RANK * run.concepts for run in runs] == [True, True]
    assert all(run.report.layers == len(host.layers()) and run.seconds(sdxl.SOLVING) > 0 for run in runs)
    rows = sdxl.table(runs, 256).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 2"]
    assert "merging the UNet" in capsys.readouterr().out


def test_memory_of_sd15_is_watched_in_every_stage(tmp_path: Path):
    host = ShapesHost(small(SD15))
    loras = [memory.random_lora(host, tmp_path / f"{i}.safetensors", rank=2, seed=i) for i in range(2)]
    report, watch = memory.measure(host, loras, 64, size=64, steps=2)
    assert report.layers == len(host.layers()) and report.rows > 0
    assert {Stage.UNET_INPUTS, Stage.UNET_LAYERS, Stage.MEASURING} <= set(watch.peaks)
