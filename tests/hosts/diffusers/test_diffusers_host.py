"""The stand-alone host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.hosts.diffusers import DiffusersHost, load
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.sampling import initial_noise
from lib_loraclr.refining.trained import TrainedFactors
from tests.small import concept, request


def everything(host: DiffusersHost) -> dict[str, torch.Tensor]:
    parts = {"unet": host.unet, "text": host.text_encoders[0].model, "vae": host.vae}
    return {f"{name}.{key}": t.clone() for name, part in parts.items() for key, t in part.state_dict().items()}


def prediction(host: DiffusersHost, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return host.denoise(initial_noise(host, [3], 128, 128), torch.tensor([500]), host.encode([prompt]))


def test_every_layer_of_the_demo_loras_is_in_the_model_with_its_shape(host: DiffusersHost, demo: Path) -> None:
    for given in load_inputs([concept(demo, "fox-face"), concept(demo, "style-mono")], host):
        assert len(given.deltas) == 216


def test_the_checkpoints_own_config_is_used(host: DiffusersHost) -> None:
    assert (host.default_size, host.pixels_per_latent, host.latent_channels) == (128, 8, 4)
    assert host.text_encoders[0].model.config.num_attention_heads == 4  # clip/config.json; 64 a head would be 2
    assert host.prediction_type == "epsilon"
    assert host.vae.config.scaling_factor == pytest.approx(0.80417)


def test_a_diffusers_folder_loads_to_the_same_model(host: DiffusersHost, tmp_path: Path) -> None:
    host.unet.save_pretrained(tmp_path / "unet")
    host.text_encoders[0].model.save_pretrained(tmp_path / "text_encoder")
    host.vae.save_pretrained(tmp_path / "vae")
    host.text_encoders[0].tokenizer.save_pretrained(tmp_path / "tokenizer")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        tmp_path / "scheduler"
    )
    again = load(tmp_path)
    assert again.layers().keys() == host.layers().keys()
    torch.testing.assert_close(prediction(again, "a photo of a cat"), prediction(host, "a photo of a cat"))


def test_what_is_not_a_checkpoint_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraclrError, match=r"fox-face\.safetensors is a LoRA: name a checkpoint"):
        load(demo / "loras" / "fox-face.safetensors")
    with pytest.raises(LoraclrError, match="is not a diffusers folder"):
        load(tmp_path)


class Stop(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("error", [None, ValueError, Stop])
def test_the_model_is_restored_bit_for_bit(host: DiffusersHost, demo: Path, error: type[BaseException] | None) -> None:
    before = everything(host)
    deltas = load_inputs([concept(demo, "fox-face")], host)[0].deltas
    plain = prediction(host, "a photo of a sks animal")

    def use() -> None:
        with host.apply(deltas), host.recomputing():
            assert not torch.equal(prediction(host, "a photo of a sks animal"), plain)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            use()
    else:
        use()
    after = everything(host)
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(prediction(host, "a photo of a sks animal"), plain)
    assert not host.unet.training


def gradients(host: DiffusersHost, deltas: dict[str, Factors], *, recompute: bool) -> dict[str, Factors]:
    parameters = TrainedFactors(deltas, host).applied
    x, t = initial_noise(host, [1, 2], 64, 64), torch.tensor([200, 800])

    def run() -> None:
        with host.apply(parameters):
            output = host.denoise(x, t, host.encode(["a photo of a sks animal", "sks animal"]))
            output.square().mean().backward()

    if recompute:
        with host.recomputing():
            run()
    else:
        run()
    return {key: Factors(f.up.grad, f.down.grad) for key, f in parameters.items()}


def test_gradients_reach_every_layer_of_text_encoder_and_unet(host: DiffusersHost, demo: Path) -> None:
    deltas = dict(load_inputs([concept(demo, "fox-face")], host)[0].deltas)
    kept, recomputed = (gradients(host, deltas, recompute=flag) for flag in (False, True))
    for key, gradient in kept.items():
        assert gradient.up.abs().max() > 0 and gradient.down.abs().max() > 0, key
        torch.testing.assert_close(recomputed[key].up, gradient.up)
        torch.testing.assert_close(recomputed[key].down, gradient.down)
    assert all(p.grad is None for p in host.unet.parameters())


def test_the_file_gives_the_same_prediction_in_diffusers_own_loader(
    host: DiffusersHost, demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`load_lora_weights` on our file against our `apply` on the merge; both LoRAs alone change far more than they differ."""
    merge = merge_loras(request(demo, "fox-face", "pizza", method="weighted_sum", options={}, precision="fp32"), host)
    save_file(lora_tensors(merge), tmp_path / "merged.safetensors")
    prompt, plain = "a photo of a sks animal", prediction(host, "a photo of a sks animal")
    with host.apply(merge.factors):
        ours = prediction(host, prompt)
    alone = []
    for given in merge.inputs:
        with host.apply(given.deltas):
            alone.append(float((prediction(host, prompt) - plain).norm()))
    other = load(demo / "emoji-sd1.safetensors")
    pipe = StableDiffusionPipeline(
        vae=other.vae,
        text_encoder=other.text_encoders[0].model,
        tokenizer=other.text_encoders[0].tokenizer,
        unet=other.unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with caplog.at_level("WARNING"):
        pipe.load_lora_weights(str(tmp_path), weight_name="merged.safetensors")
    assert "unexpected" not in caplog.text.lower() and "missing" not in caplog.text.lower()
    difference = float((prediction(other, prompt) - ours).norm())
    assert difference * 50 < min(alone)


def test_a_sibling_yaml_decides_the_prediction_type(demo: Path, tmp_path: Path) -> None:
    save_file(load_file(demo / "emoji-sd1.safetensors"), tmp_path / "v.safetensors")
    text = (demo / "emoji-sd1.yaml").read_text("utf-8")
    marked = text.replace("    linear_start:", '    parameterization: "v"\n    linear_start:').replace(
        "version: clip", f"version: {json.dumps(str(demo / 'clip'))}"
    )
    (tmp_path / "v.yaml").write_text(marked, "utf-8")
    assert load(tmp_path / "v.safetensors").prediction_type == "v_prediction"
