"""What every host promises the core (`model/host.py`), asked of each: diffusers, A1111's WebUI, Forge and reForge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from webui_stand_in import StandIn
from webui_stand_in_forge import ForgeStandIn
from webui_stand_in_reforge import ReforgeStandIn

from lib_loraclr.hosts import a1111, forge
from lib_loraclr.model.families import SD1, SDXL
from lib_loraclr.model.host import Conditioning, Host
from lib_loraclr.model.low_rank import Factors
from tests import tiny_checkpoints as tiny
from tests.tiny_hosts import Open

TINY = {"SD1": tiny.SD1, "SDXL": tiny.SDXL}


@dataclass
class Opened:
    """A host, and the layers that the tests change.

    Attributes:
        keys: one layer of each text encoder and two of the UNet
    """

    host: Host
    keys: tuple[str, ...]


def _stand_in(kind: str, make: type[StandIn], session: Callable) -> Callable[..., Host]:
    def open_(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch, _: Open) -> Host:
        make(folder, kind).install(patch)
        return stack.enter_context(session())

    return open_


HOSTS = {
    f"{name}-{kind}": open_
    for kind in ("SD1", "SDXL")
    for name, open_ in (
        ("diffusers", lambda stack, folder, patch, opened, kind=kind: opened(TINY[kind])),
        ("a1111", _stand_in(kind, StandIn, a1111.session)),
        ("forge", _stand_in(kind, ForgeStandIn, forge.session)),
        ("reforge", _stand_in(kind, ReforgeStandIn, forge.session)),
    )
}
#: what of the layers' keys names a part that all of these checkpoints have
_LAYER = "text_model_encoder_layers_0_"


@pytest.fixture(params=HOSTS)
def opened_host(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> Iterator[Opened]:
    with ExitStack() as stack:
        host = HOSTS[request.param](stack, folder, monkeypatch, opened)
        layers = host.layers()
        prefixes = [f"{prefix}{_LAYER}self_attn_q_proj" for prefix in host.family.text_encoders]
        unet = [key for key in layers if key.endswith("attn1_to_q")][:1] + ["lora_unet_conv_in"]
        keys = tuple(
            key if key in layers else host.aliases.get(key, "lora_unet_input_blocks_0_0") for key in prefixes + unet
        )
        yield Opened(host, keys)


def factors(host: Host, key: str, *, size: float = 0.3) -> Factors:
    d_out, d_in = host.layers()[key].shape
    generator = torch.Generator().manual_seed(len(key))
    up, down = torch.randn(d_out, 2, generator=generator), torch.randn(2, d_in, generator=generator)
    return Factors(up * size, down / d_in**0.5)


def predict(host: Host, *prompts: str) -> Tensor:
    x = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return host.denoise(x, torch.full((len(prompts),), 500), host.encode(prompts))


def test_it_tells_what_is_loaded(opened_host: Opened):
    host = opened_host.host
    assert host.family in (SD1, SDXL) and host.name in ("diffusers", "a1111", "forge", "reforge")
    assert (host.latent_channels, host.pixels_per_latent, host.prediction_type) == (4, 8, "epsilon")
    assert len(host.alphas_cumprod) == 1000 and host.alphas_cumprod[0] > 0.9 > 0.1 > host.alphas_cumprod[-1] > 0
    assert host.refinement_obstacle() is None and host.clip_skip == (1 if host.family is SD1 else 2)
    assert isinstance(host.checkpoint_path, Path) and "tiny" in host.checkpoint
    assert set(host.aliases.values()) <= host.layers().keys() and not set(host.aliases) & host.layers().keys()
    assert {key.partition("text_model")[0] for key in host.layers() if key.startswith("lora_te")} == set(
        host.family.text_encoders
    )


def test_a_delta_is_the_same_as_a_changed_weight_and_is_undone(opened_host: Opened):
    host = opened_host.host
    for key in opened_host.keys:
        delta, layer = factors(host, key), host.layers()[key]
        with torch.no_grad():
            base = predict(host, "a cat")
            with host.apply({key: delta}):
                changed = predict(host, "a cat")
            assert torch.equal(predict(host, "a cat"), base), key
            assert (changed - base).abs().max() > 1e-4, "control: the delta does something"
            weight = layer.weight.clone()
            layer.weight.add_(delta.dense().reshape(weight.shape))
            try:
                torch.testing.assert_close(predict(host, "a cat"), changed, rtol=1e-4, atol=1e-5)
            finally:
                layer.weight.copy_(weight)


def test_whatever_happens_the_weights_are_the_ones_before(opened_host: Opened):
    host, key = opened_host.host, opened_host.keys[0]
    with torch.no_grad():
        base = predict(host, "a cat")
        with pytest.raises(RuntimeError, match="on purpose"), host.apply({key: factors(host, key)}), host.recomputing():
            raise RuntimeError("on purpose")
        assert torch.equal(predict(host, "a cat"), base)
    with pytest.raises(KeyError, match="nobody"), host.apply({"nobody": factors(host, key)}):
        pass


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recomputed"])
def test_gradients_are_those_of_the_loss(opened_host: Opened, recompute: bool):
    """Against the difference of two losses, along each factor's gradient."""
    host = opened_host.host
    deltas = {key: factors(host, key) for key in opened_host.keys}
    for delta in deltas.values():
        delta.up.requires_grad_()

    def loss() -> Tensor:
        return predict(host, "a cat", "a dog on a mat").double().square().mean()

    with host.apply(deltas):
        with host.recomputing() if recompute else nullcontext():
            value = loss()
        value.backward()
    assert all(layer.weight.grad is None for layer in host.layers().values() if layer.rows is None)
    for key, delta in deltas.items():
        slope = float(delta.up.grad.norm())
        assert slope > 0, key
        # far enough for the loss to change by more than it is rounded, near enough for it to be straight
        length = min(2e-3 * value.item() / slope, 0.02 * float(delta.up.detach().norm()))
        step = delta.up.grad / slope * length
        values = []
        for sign in (1, -1):
            moved = Factors(delta.up.detach() + sign * step, delta.down)
            with torch.no_grad(), host.apply({**deltas, key: moved}):
                values.append(float(loss()))
        assert (values[0] - values[1]) / (2 * float(step.norm())) == pytest.approx(slope, rel=0.02), key


def test_prompts_are_encoded_as_if_each_were_alone(opened_host: Opened):
    host = opened_host.host
    long = " ".join(["word"] * 100)
    texts = ["a cat", "a (big:1.3) cat", long, "a cat", ""] if host.weighs_words else ["a cat", long, "a cat", ""]
    x, t = torch.randn(len(texts), 4, 8, 8), torch.arange(1, 999, 200)[: len(texts)]
    with torch.no_grad():
        together = host.denoise(x, t, host.encode(texts))
        joined = host.denoise(x, t, Conditioning.cat([host.encode([text]) for text in texts]))
        alone = [host.denoise(x[i : i + 1], t[i : i + 1], host.encode([text])) for i, text in enumerate(texts)]
    for found in (together, joined):
        torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_pictures_are_of_the_size_of_the_latents(opened_host: Opened):
    pictures = opened_host.host.decode(torch.zeros(2, 4, 4, 6))
    assert [picture.size for picture in pictures] == [(48, 32)] * 2
    with torch.no_grad():
        predict(opened_host.host, "a cat")  # it still runs
