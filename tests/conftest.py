"""What every test file shares: the demo model, hand-made files and merges, and no network."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.files.tensor_files import DTYPES
from lib_loraclr.hosts.diffusers import DiffusersHost, load
from lib_loraclr.model.families import SD1
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged import Merge, Target
from lib_loraclr.output.report import ConceptReport, MergeReport
from lib_loraclr.recording.inputs import InputLora
from lib_loraclr.request.merge_request import Concept, MergeRequest
from tests.tiny_hosts import Open, opener

#: one layer of each form that the demo checkpoint has -> shape of its weight
LAYERS = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (512, 128),
    "lora_unet_conv_in": (64, 4, 3, 3),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (128, 128),
}


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Nothing may be fetched, not even while the model is loaded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test tried to open a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        patch.setattr(socket, "create_connection", refuse)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder with the demo checkpoint and its LoRAs."""
    return Path(__file__).parents[1] / "demo"


@pytest.fixture(scope="session")
def host(demo: Path) -> DiffusersHost:
    """The demo checkpoint, loaded once; tests leave it as they found it."""
    return load(demo / "emoji-sd1.safetensors")


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Loads a kind of tiny checkpoint, once; tests leave it as they found it."""
    return opener(tmp_path_factory.mktemp("tiny"))


def random_lora(
    path: Path,
    layers: Mapping[str, tuple[int, ...]] = LAYERS,
    *,
    rank: int = 2,
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """A LoRA file with random factors, written by the safetensors package and not by the code under test."""
    tensors = dict(extra or {})
    for key, (d_out, *d_in) in layers.items():
        ones = (1,) * (len(d_in) - 1)
        tensors[f"{key}.lora_up.weight"] = torch.randn(d_out, rank, *ones).half()
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *d_in).half()
        tensors[f"{key}.alpha"] = torch.tensor(float(rank)).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata) if metadata else None)
    return path


@pytest.fixture
def write_lora() -> Callable[..., Path]:
    return random_lora


@pytest.fixture
def make_merge(tmp_path: Path, demo: Path) -> Callable[..., Merge]:
    """Makes a finished merge of two small LoRAs by hand, as `merge_loras` would return it of the demo checkpoint."""
    checkpoint = demo / "emoji-sd1.safetensors"
    target = Target(SD1, "diffusers", str(checkpoint), checkpoint, "epsilon", LAYERS, clip_skip=1)

    def make(
        *,
        precision: str = "fp16",
        rank: int = 3,
        metadata: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
        extra: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {}),
    ) -> Merge:
        paths = [
            random_lora(tmp_path / "inputs" / f"{name}.safetensors", metadata=metadata[i], extra=extra[i])
            for i, name in enumerate(("fox", "mono"))
        ]
        concepts = (
            Concept(str(paths[0]), 0.8, 0.7, trigger="sks animal"),
            Concept(str(paths[1]), kind="style", importance=2.0),
        )
        factors = {
            key: Factors(torch.randn(d_out, rank), torch.randn(rank, int(torch.tensor(d_in).prod())))
            for key, (d_out, *d_in) in LAYERS.items()
        }
        report = MergeReport(
            "average",
            "Model soups, arXiv 2203.05482",
            (ConceptReport("fox", "sks animal", -0.25, 0.5), ConceptReport("mono", "", 0.125, None)),
            base_drift_all_tags=1.5,
            base_drift=0.5,
            layers=len(LAYERS),
            rank=(rank, float(rank), rank),
        )
        return Merge(
            MergeRequest(concepts, method="average", precision=precision, seed=7),
            {key: f.to(DTYPES[precision]) for key, f in factors.items()},
            tuple(InputLora(concept, read_lora(path), {}) for concept, path in zip(concepts, paths, strict=True)),
            target,
            report,
        )

    return make
