"""Memory of a merge at the layer shapes of a real SD1.5, against the budget: shapes only, no weights.

    python -m bench.memory --concepts 12 --budget 512

The model's layers are stand-ins without weights that receive random inputs of the real shapes (found by running diffusers' SD1.5
on the meta device), so that what is measured is what recording and solving take. Growth is counted from the moment
model and LoRAs are loaded; Linux only.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import lib_loraclr.hosts
from lib_loraclr.hosts.base import SD1, Conditioning
from lib_loraclr.hosts.diffusers import model_layers
from lib_loraclr.hosts.substitution import Layer, substituted
from lib_loraclr.low_rank import Factors
from lib_loraclr.merge import merge_loras
from lib_loraclr.progress import Progress
from lib_loraclr.report import MergeReport
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions

RANK = 16
Shapes = dict[str, tuple[int, ...]]


class _StandIn(nn.Module):
    """A layer's shape: a weight of one number seen `d_out * d_in` times, and a forward that does nothing."""

    def __init__(self, weight: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1).expand(weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def _sd15_on_meta() -> tuple[nn.Module, nn.Module]:
    bundled = Path(lib_loraclr.hosts.__file__).parent / "sd1" / "v1-inference.yaml"
    params = yaml.safe_load(bundled.read_text("utf-8"))["model"]["params"]["unet_config"]["params"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=params["context_dim"], attention_head_dim=8)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    return unet, text_encoder


def _input_shapes(layers: Mapping[str, Layer], run) -> tuple[Shapes, dict[str, str]]:
    """What shape enters each layer at batch 1, and which layers receive the same tensor."""
    shapes, first, same, held, handles = {}, {}, {}, [], []
    for key, layer in layers.items():

        def note(_: nn.Module, arguments: tuple[Tensor, ...], key: str = key) -> None:
            held.append(arguments[0])
            shapes[key] = tuple(arguments[0].shape[1:])
            same[key] = first.setdefault(id(arguments[0]), key)

        handles.append(layer.module.register_forward_pre_hook(note))
    run()
    for handle in handles:
        handle.remove()
    return shapes, same


class ShapesHost:
    """A host that has SD1.5's layer shapes, and random numbers for everything else."""

    family, name, checkpoint = SD1, "shapes", "SD1.5 (shapes only)"
    latent_channels, pixels_per_latent, default_size, prediction_type = 4, 8, 512, "epsilon"
    device = torch.device("cpu")
    aliases: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.alphas_cumprod = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).alphas_cumprod
        self._unet, text_encoder = _sd15_on_meta()
        real = model_layers(self._unet, text_encoder)
        self._real_unet = {key: layer for key, layer in real.items() if key.startswith("lora_unet_")}
        ids = torch.zeros(1, 77, dtype=torch.long, device="meta")
        text_layers = {key: layer for key, layer in real.items() if key not in self._real_unet}
        self._text = _input_shapes(text_layers, lambda: text_encoder(ids))
        self._by_size: dict[tuple[int, ...], tuple[Shapes, dict[str, str]]] = {}
        kept = (nn.Linear, nn.Conv2d)
        attention = {k: v for k, v in real.items() if "attn" in k or "ff_net" in k or "proj" in k or "mlp" in k}
        self._layers = {
            key: Layer.of(_StandIn(layer.weight.shape))
            for key, layer in attention.items()
            if isinstance(layer.owner, kept)
        }

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def apply(self, deltas: Mapping[str, Factors]):
        return substituted(self._layers, deltas)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self._feed(*self._text, batch=len(prompts))
        return Conditioning({"context": torch.randn(len(prompts), 77, 768)})

    def denoise(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in self._by_size:
            latent = torch.zeros(1, 4, *size, device="meta")
            context = torch.zeros(1, 77, 768, device="meta")
            self._by_size[size] = _input_shapes(
                self._real_unet, lambda: self._unet(latent, torch.zeros(1, device="meta"), context)
            )
        self._feed(*self._by_size[size], batch=len(x))
        return torch.randn_like(x)

    def _feed(self, shapes: Shapes, same: dict[str, str], batch: int) -> None:
        shared: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            if key in self._layers:
                module = self._layers[key].module
                shared[same[key]] = given = shared.get(same[key], None)
                if given is None:
                    # one random row per sample, seen at every position: the maps themselves are the model's, not ours
                    columns = self._layers[key].shape[1]
                    positions = math.prod(shape) // columns
                    shared[same[key]] = given = torch.randn(batch, 1, columns).expand(batch, positions, columns)
                module(given)

    def recomputing(self):
        return nullcontext()

    def decode(self, latents: Tensor) -> list:
        return []


def random_lora(host: ShapesHost, path: Path, seed: int) -> None:
    """A LoRA file with a random delta for every layer of the host."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, layer in host.layers().items():
        d_out, d_in = layer.shape
        tail = (1, 1) if layer.weight.dim() == 4 else ()
        tensors[f"{key}.lora_up.weight"] = torch.randn(d_out, RANK, *tail, generator=generator).half()
        tensors[f"{key}.lora_down.weight"] = torch.randn(RANK, d_in, *tail, generator=generator).half()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, path)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


class Watch(Progress):
    """Resident size when the first stage starts, and the most there was in each stage."""

    def __init__(self) -> None:
        self.baseline, self.stage, self.peaks = None, "", {}

    def start(self, stage: str, total: int) -> None:
        self.baseline = resident_mb() if self.baseline is None else self.baseline
        self.stage = stage

    def look(self) -> None:
        if self.stage:
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0.0), resident_mb() - self.baseline)


@contextmanager
def looking(watch: Watch) -> Iterator[None]:
    done = threading.Event()

    def loop() -> None:
        while not done.wait(0.005):
            watch.look()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(
    host: ShapesHost, loras: Sequence[Path], budget: int, *, size: int, steps: int
) -> tuple[MergeReport, Watch]:
    """Merge, and watch."""
    concepts = tuple(Concept(str(path), trigger=f"word{i}") for i, path in enumerate(loras))
    recording = RecordingOptions(paths=2, steps=steps, height=size, width=size)
    request = MergeRequest(concepts, method="ridge", memory_mb=budget, recording=recording)
    watch = Watch()
    with looking(watch):
        merge = merge_loras(replace(request, rank="8"), host, watch)
    return merge.report, watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=12)
    parser.add_argument("--budget", type=int, default=512, help="MB")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=4, help="per denoising path")
    arguments = parser.parse_args()
    host = ShapesHost()
    with tempfile.TemporaryDirectory() as folder:
        loras = [Path(folder) / f"lora{i}.safetensors" for i in range(arguments.concepts)]
        for i, path in enumerate(loras):
            random_lora(host, path, i)
        report, watch = measure(host, loras, arguments.budget, size=arguments.size, steps=arguments.steps)
    print(
        f"{report.layers} layers, N = {arguments.concepts}, {arguments.size} px, {arguments.steps} steps, "
        f"budget {arguments.budget} MB: {report.rows} rows kept per layer and teacher"
    )
    for stage, peak in watch.peaks.items():
        print(f"  {stage:32} {peak:7.0f} MB beyond model and LoRAs")
    peak = max(watch.peaks.values())
    print(f"peak growth {peak:.0f} MB = {peak / arguments.budget:.2f} x budget")


if __name__ == "__main__":
    main()
