"""One merge of every kind of network in every style of key, on the demo checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_loraclr.files import deltas
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.recording.inputs import load_input, load_inputs
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from lib_loraclr.request.prompts import is_background
from tests import tiny_checkpoints as tiny
from tests.small import PROMPTS, measure_on_little
from tests.tiny_hosts import Open, predict

ATTENTION = "mid_block_attentions_0_transformer_blocks_0"
TO_K, CONV = f"lora_unet_{ATTENTION}_attn2_to_k", "lora_unet_mid_block_resnets_0_conv1"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
DOTTED = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 20


def files(weights: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Name -> tensors of a file, and the deltas that they stand for (by the layer's key), written out."""
    (out, width), (c_out, c_in, *_), (te_out, te_in) = (weights[key].shape for key in (TO_K, CONV, FC1))
    up, down, te_up, te_down = (draw(*s, seed=i) for i, s in enumerate([(out, 4), (4, width), (te_out, 4), (4, te_in)]))
    lora = up @ down
    a1, b1, a2, b2 = (draw(*s, seed=i + 9) for i, s in enumerate([(c_out, 2), (2, c_in * 9)] * 2))
    w1, w2 = draw(4, 4, seed=20), draw(te_out // 4, te_in // 4, seed=21)
    magnitude = draw(1, width, seed=30).abs() + 1
    changed = weights[TO_K] + lora / 2
    dora = changed / changed.norm(dim=0, keepdim=True) * magnitude - weights[TO_K]
    turned = f"lora_unet_{ATTENTION}_attn1_to_q"
    skew = draw(out // 4, 4, 4, seed=40)
    blocks = [(torch.eye(4) + q - q.T) @ torch.inverse(torch.eye(4) - q + q.T) for q in skew]
    rotated = torch.block_diag(*blocks).T @ weights[turned] - weights[turned]
    return {
        "kohya-lora": (
            {f"{TO_K}.lora_up.weight": up, f"{TO_K}.lora_down.weight": down, f"{TO_K}.alpha": torch.tensor(2.0)},
            {TO_K: lora / 2},
        ),
        "compvis-loha": (
            {
                "lora_unet_middle_block_0_in_layers_2.hada_w1_a": a1,
                "lora_unet_middle_block_0_in_layers_2.hada_w1_b": b1,
                "lora_unet_middle_block_0_in_layers_2.hada_w2_a": a2,
                "lora_unet_middle_block_0_in_layers_2.hada_w2_b": b2,
            },
            {CONV: ((a1 @ b1) * (a2 @ b2)).view(c_out, c_in, 3, 3)},
        ),
        "lycoris-lokr": (
            {f"lycoris_{FC1[8:]}.lokr_w1": w1, f"lycoris_{FC1[8:]}.lokr_w2": w2},
            {FC1: torch.kron(w1, w2)},
        ),
        "kohya-dora": (
            {
                f"{TO_K}.lora_up.weight": up,
                f"{TO_K}.lora_down.weight": down,
                f"{TO_K}.alpha": torch.tensor(2.0),
                f"{TO_K}.dora_scale": magnitude,
            },
            {TO_K: dora},
        ),
        "diffusers-lora": (
            {
                f"unet.{DOTTED}.lora_A.weight": down * 2,
                f"unet.{DOTTED}.lora_B.weight": up,
                "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": te_up,
                "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight": te_down,
            },
            {TO_K: lora * 2, FC1: te_up @ te_down},
        ),
        "kohya-oft": ({f"oft_{turned[5:]}.oft_blocks": skew}, {turned: rotated}),
    }


@pytest.fixture(scope="module")
def written(host: DiffusersHost, tmp_path_factory: pytest.TempPathFactory):
    """Paths of the files, and all deltas added."""
    folder = tmp_path_factory.mktemp("kinds")
    weights = {key: layer.weight for key, layer in host.layers().items()}
    paths, expected = [], {}
    embedding = {"bundle_emb.sks.string_to_param.*": torch.ones(2, 128)}
    for name, (tensors, own) in files(weights).items():
        extra = embedding if name == "kohya-lora" else {}
        save_file(
            {key: tensor.contiguous() for key, tensor in {**tensors, **extra}.items()}, folder / f"{name}.safetensors"
        )
        paths.append(folder / f"{name}.safetensors")
        for key, delta in own.items():
            expected[key] = expected.get(key, 0) + delta
    return paths, expected


def concepts(paths: list[Path]) -> tuple[Concept, ...]:
    return tuple(Concept(str(path), trigger=f"{path.stem} thing") for path in paths)


def dense(factors: Factors, like: Tensor) -> Tensor:
    return factors.dense().view_as(like)


def test_every_key_of_every_file_is_used_or_passed_through(host: DiffusersHost, written) -> None:
    for given in load_inputs(concepts(written[0]), host):
        assert given.deltas and given.file.unknown == ()
        assert not [warning for warning in given.warnings if "not understood" in warning]


def test_the_inputs_together_are_the_sum_of_dense_deltas(host: DiffusersHost, written) -> None:
    paths, expected = written
    total = {}
    for given in load_inputs(concepts(paths), host):
        for key, factors in given.deltas.items():
            total[key] = total.get(key, 0) + dense(factors, host.layers()[key].weight)
    assert set(total) == set(expected)
    for key, delta in expected.items():
        assert float((total[key] - delta).norm() / delta.norm()) < 2e-3, key


def test_one_merge_of_all_is_their_sum(host: DiffusersHost, written, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_on_little(monkeypatch, paths=1, steps=2)
    paths, expected = written
    asked = MergeRequest(
        concepts(paths),
        method="weighted_sum",
        precision="fp32",
        rank="full",
        prompts=PROMPTS,
        recording=RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64),
    )
    merge = merge_loras(asked, host)
    assert set(merge.factors) == set(expected)
    for key, delta in expected.items():
        assert float((dense(merge.factors[key], delta) - delta).norm() / delta.norm()) < 2e-3, key
    lossy = [warning for warning in merge.report.warnings if "have no low rank of their own" in warning]
    assert {warning.partition(":")[0] for warning in lossy} <= {"kohya-dora", "kohya-oft", "lycoris-lokr"}
    assert any(concept.loss > 0 for concept in merge.report.concepts) == bool(lossy)


def test_dyn_and_weight_act_on_a_file(host: DiffusersHost, written) -> None:
    concept = concepts(written[0])[0]
    whole = load_input(concept, host).deltas[TO_K].dense()
    half = load_input(dataclasses.replace(concept, unet_weight=0.5), host).deltas[TO_K].dense()
    cut = load_input(dataclasses.replace(concept, dyn=1), host).deltas[TO_K]
    assert torch.allclose(half, whole / 2) and cut.rank == 1
    assert not torch.allclose(cut.dense(), whole)


def test_what_is_not_understood_is_listed(host: DiffusersHost, written, tmp_path: Path) -> None:
    tensors = load_file(written[0][0])
    odd = {
        f"{TO_K}.scalar": torch.ones(1),
        "lora_unet_nowhere.lora_up.weight": torch.ones(4, 2),
        "optimizer": torch.ones(1),
    }
    save_file({**tensors, **odd}, tmp_path / "odd.safetensors")
    given = load_input(Concept(str(tmp_path / "odd.safetensors"), trigger="odd"), host)
    unknown, foreign = given.warnings
    assert "2 keys are not understood and left out (optimizer, " in unknown and f"{TO_K}.scalar" in unknown
    assert "1 keys have no place in the model and are left out (lora_unet_nowhere.lora_up.weight)" in foreign
    assert given.left_out == ("optimizer", f"{TO_K}.scalar", "lora_unet_nowhere.lora_up.weight"), (
        "all of them, for the report"
    )


def test_one_layer_under_two_names_is_refused(host: DiffusersHost, written, tmp_path: Path) -> None:
    from lib_loraclr.errors import LoraclrError

    tensors = load_file(written[0][0])
    twice = {
        key.replace("lora_unet_mid_block_attentions_0", "lora_unet_middle_block_1"): t.clone()
        for key, t in tensors.items()
    }
    save_file({**tensors, **twice}, tmp_path / "twice.safetensors")
    with pytest.raises(LoraclrError, match=f"holds {TO_K} twice, under two names"):
        load_input(Concept(str(tmp_path / "twice.safetensors"), trigger="twice"), host)


def test_of_an_inpainting_checkpoints_first_layer_what_reads_latents_is_merged(opened: Open, tmp_path: Path) -> None:
    """As the WebUI adds LoRAs of four channels there; one of all nine it does not read."""
    host = opened(tiny.SD1.inpainting())
    d_out, key = len(host.unet.conv_in.weight), "lora_unet_conv_in"
    paths = []
    for seed, channels in enumerate((4, 4, 9)):
        factors = {"up": draw(d_out, 2, 1, 1, seed=seed), "down": draw(2, channels, 3, 3, seed=seed + 9)}
        other = "lora_unet_mid_block_attentions_0_proj_in"
        wide = host.layers()[other].shape[0]
        rest = {"up": draw(wide, 2, 1, 1, seed=seed), "down": draw(2, wide, 1, 1, seed=seed + 9)}
        named = {f"{key}.lora_{side}.weight": t for side, t in factors.items()}
        named |= {f"{other}.lora_{side}.weight": t for side, t in rest.items()}
        save_file(named, tmp_path / f"{seed}.safetensors")
        paths.append(tmp_path / f"{seed}.safetensors")
    nine = load_input(Concept(str(paths[2]), trigger="nine"), host)
    assert key not in nine.deltas and "2 keys have no place in the model" in nine.warnings[0]

    small = {"recording": RecordingOptions(1, 2, 2, 5.0, 64, 64), "prompts": PROMPTS, "memory_mb": 64}
    merge = merge_loras(MergeRequest(concepts(paths[:2]), "ridge", precision="fp32", **small), host)
    assert lora_tensors(merge)[f"{key}.lora_down.weight"].shape[1:] == (4, 3, 3)
    weight = host.unet.conv_in.weight.detach().clone()
    with host.apply(merge.factors):
        hook = host.unet.conv_in.register_forward_pre_hook(
            lambda module, _: seen.append(module.weight.detach().clone())
        )
        seen: list[Tensor] = []
        predict(host, "a 0 thing")
        hook.remove()
    delta = merge.factors[key].dense().view(d_out, 4, 3, 3)
    assert torch.allclose(seen[0][:, :4] - weight[:, :4], delta, atol=1e-5) and delta.any()
    assert torch.equal(seen[0][:, 4:], weight[:, 4:])


def test_a_look_before_a_merge_finds_the_same_shapes_without_factoring(
    host: DiffusersHost, written, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_inputs(concepts(written[0]), host)
    monkeypatch.setattr(deltas, "factored", lambda *_: pytest.fail("factoring is most of the work"))
    dense = set()
    for concept, given in zip(concepts(written[0]), whole, strict=True):
        look = load_input(concept, host, shapes_only=True)
        assert look.warnings == tuple(w for w in given.warnings if "factors lose" not in w)
        assert {key: f.shape for key, f in look.deltas.items()} == {key: f.shape for key, f in given.deltas.items()}
        assert all(factors.up.is_meta and factors.down.is_meta for factors in look.deltas.values())
        assert all(look.deltas[key].rank >= factors.rank for key, factors in given.deltas.items())
        dense |= {key for key, factors in given.deltas.items() if look.deltas[key].rank > factors.rank}
    assert dense, "control: some were factored to a lower rank"


@pytest.mark.parametrize(
    ("kind", "asked", "found"),
    [
        ("style", None, "clay style"),
        ("style", "", ""),
        ("style", "a clay", "a clay"),
        ("subject", None, "clay style"),
        ("subject", "", "clay style"),
    ],
)
def test_a_style_may_have_no_trigger_although_its_file_names_one(
    host: DiffusersHost, demo: Path, tmp_path: Path, kind: str, asked: str | None, found: str
) -> None:
    """Emptied by a person, it acts on everything; a subject that nothing calls would be an error."""
    tensors = load_file(demo / "loras" / "style-clay.safetensors")
    save_file(tensors, tmp_path / "clay.safetensors", {"modelspec.trigger_phrase": "clay style"})
    given = load_input(Concept(str(tmp_path / "clay.safetensors"), trigger=asked, kind=kind), host)
    assert given.concept.trigger == found
    assert is_background(given.concept) == (found == "")
