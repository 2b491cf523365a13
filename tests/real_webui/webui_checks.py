"""What the tests look at inside the real WebUI: the checkpoint as the host adapter has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from webui_pictures import settings

from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.hosts import running
from lib_loraclr.model.host import Conditioning, Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.model.substitution import Layer
from lib_loraclr.recording.input_rows import record_inputs, shared_inputs
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.merge_request import Concept


def ready() -> str:
    from modules import call_queue, sd_models, shared

    if hasattr(sd_models, "forge_model_reload"):  # Forge loads none before it is used
        with call_queue.queue_lock:
            sd_models.forge_model_reload()
    return shared.sd_model.sd_checkpoint_info.title


def loaded_modules() -> torch.nn.Module:
    """The loaded model, or in Forge, whose engine is none, its UNet and text encoders."""
    from modules import shared

    objects = getattr(shared.sd_model, "forge_objects_original", None)
    if objects is None:
        return shared.sd_model
    both = torch.nn.ModuleDict({"unet": objects.unet.model, "clip": objects.clip.cond_stage_model})
    both.training = objects.unet.model.training
    return both


def describe() -> dict[str, Any]:
    with running.session() as host:
        layers = host.layers()
        return {
            "family": host.family.name,
            "name": host.name,
            "checkpoint": host.checkpoint,
            "size": host.default_size,
            "latent": [host.latent_channels, host.pixels_per_latent],
            "prediction": host.prediction_type,
            "clip_skip": host.clip_skip,
            "alphas": host.alphas_cumprod[[0, 500, 999]].tolist(),
            "layers": {key: list(layer.shape) for key, layer in layers.items()},
            "idle": _idle(host),
            "aliases": host.aliases,
            "inpainting": host.inpainting,
        }


def _idle(host: Host) -> list[str]:
    """Layers that a prediction does not run."""
    seen = set()
    handles = [
        layer.module.register_forward_pre_hook(lambda *_, key=key: seen.add(key))
        for key, layer in host.layers().items()
    ]
    try:
        predict(host)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(host.layers().keys() - seen)


def switch(checkpoint: str) -> str:
    """Load another checkpoint of the WebUI's folder, as its menu does."""
    from modules import call_queue, sd_models, shared

    with call_queue.queue_lock:
        sd_models.reload_model_weights(info=sd_models.get_closet_checkpoint_match(checkpoint))
    return shared.sd_model.sd_checkpoint_info.title


def strange_keys() -> list[str]:
    """Tensors of the loaded checkpoint's file that its model has not, and the other way round, UNet and text encoders."""
    from modules import shared
    from safetensors import safe_open

    with safe_open(shared.sd_model.sd_checkpoint_info.filename, "pt") as file:
        names = set(file.keys())
    # XL's model also has one of its conditioner's encoders as `cond_stage_model`, a name that the WebUI gives it
    conditioner = "conditioner." if any(name.startswith("conditioner.") for name in names) else "cond_stage_model."
    parts = ("model.diffusion_model.", conditioner, "first_stage_model.")
    # the hijack wraps the text encoders and their embeddings
    model = {
        name.replace(".wrapped.", ".") for name in shared.sd_model.state_dict() if not name.endswith("position_ids")
    }
    return sorted({name for name in names ^ model if name.startswith(parts) and "attn_mask" not in name})


def prediction(prompts: Sequence[str]) -> list[Any]:
    """What the host says of fixed latents, as nested lists."""
    with running.session() as host, torch.no_grad():
        x, t = _sample(host)
        return host.denoise(x, t, host.encode(prompts)).tolist()


def missing_keys(name: str) -> dict[str, Any]:
    """Layer keys of a file that the host does not have, and how many layers it has and the WebUI matches."""
    import networks

    with running.session() as host:
        found = running.find_lora(name)
        keys = set(read_lora(found.path).layers)
        matched = getattr(networks.load_network(name, networks.available_networks[found.name]), "modules", ())
        unknown = sorted(keys - set(host.layers()) - set(host.aliases))
        return {"unknown": unknown, "keys": len(keys), "matched": len(matched)}


def deltas(host: Host, name: str, te: float = 1.0, unet: float = 1.0) -> Mapping[str, Factors]:
    """A LoRA's deltas by layer key, whatever its file calls the layers."""
    return load_input(Concept(str(running.find_lora(name).path), te, unet), host).deltas


def delta_errors(name: str) -> float:
    """The largest relative difference between our deltas and the WebUI's `calc_updown`, over all layers."""
    import networks

    with running.session() as host:
        network = networks.load_network(name, networks.available_networks[name])
        layers, worst = host.layers(), 0.0
        by_owner = {(id(m.sd_module), name[-7:-5]): m for name, m in network.modules.items()}
        for key, factors in deltas(host, name).items():
            owner = layers[key].owner
            packed = isinstance(owner, torch.nn.MultiheadAttention)
            [own] = [m for (i, part), m in by_owner.items() if i == id(owner) and (not packed or part == key[-7:-5])]
            theirs, _ = own.calc_updown(layers[key].weight)
            error = (theirs.reshape(factors.shape) - factors.dense()).norm() / theirs.norm()
            worst = max(worst, float(error))
        return worst


def _sample(host: Host, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, host.latent_channels, size, size, generator=generator)
    return x.to(host.device), torch.tensor([700, 250], device=host.device)


PROMPTS = ("a photo of a sks animal on a red background", "a (pizza:1.3) and a car")


@torch.no_grad()
def predict(host: Host) -> torch.Tensor:
    x, t = _sample(host)
    return host.denoise(x, t, host.encode(PROMPTS))


@contextmanager
def webui_loaded(names: Sequence[str], te: Sequence[float], unet: Sequence[float]):
    import networks

    networks.load_networks(list(names), list(te), list(unet), [None] * len(names))
    try:
        yield
    finally:
        networks.load_networks([])


def alone_like_the_webui(name: str, te: float = 1.0, unet: float = 1.0, functional: bool = False) -> dict[str, float]:
    """Prediction with our substitution against the WebUI's own LoRA, relative to what the LoRA changes."""
    with settings(lora_functional=functional), running.session() as host:
        base = predict(host)
        with host.apply(deltas(host, name, te, unet)):
            ours = predict(host)
        with webui_loaded([name], [te], [unet]):
            theirs = predict(host)
        with host.apply({}):
            again = predict(host) if functional else base
        return {
            "error": float((ours - theirs).norm() / (theirs - base).norm()),
            "effect": float((theirs - base).norm() / base.norm()),
            "restored": float((again - base).abs().max()),
        }


@torch.no_grad()
def embeddings_like_the_webui(name: str, prompt: str) -> dict[str, Any]:
    """Conditioning of a prompt with a LoRA and what it bundles, ours and the WebUI's, and what is known afterwards."""
    from modules import sd_hijack

    database = sd_hijack.model_hijack.embedding_db
    with running.session() as host:
        given = load_input(Concept(str(running.find_lora(name).path)), host)
        before = sorted(database.word_embeddings), sorted(database.ids_lookup)
        with host.apply(given.deltas):
            without = host.encode([prompt]).tensors["context"]
            with host.knowing(given.file.embeddings) as warnings:
                ours = host.encode([prompt]).tensors["context"]
        after = sorted(database.word_embeddings), sorted(database.ids_lookup)
        with webui_loaded([name], [1.0], [1.0]):
            theirs = host.encode([prompt]).tensors["context"]
        return {
            "error": float((ours - theirs).norm() / theirs.norm()),
            "effect": float((without - theirs).norm() / theirs.norm()),
            "forgotten": before == after,
            "warnings": warnings,
        }


def sampler_prediction(prompt: str, **options: Any) -> float:
    """Our encode and denoise against what the WebUI's own sampler computes: largest difference."""
    from modules import devices, processing, prompt_parser, shared

    with settings(**options), running.session() as host, torch.no_grad():
        x, t = _sample(host)
        size = {"width": x.shape[3] * 8, "height": x.shape[2] * 8}
        texts = prompt_parser.SdConditioning([prompt, prompt], is_negative_prompt=not prompt, **size)
        with devices.autocast():
            [[_, cond]], _ = prompt_parser.get_learned_conditioning(shared.sd_model, texts, 20)
        if isinstance(cond, dict):
            told = {name: torch.stack([tensor, tensor]) for name, tensor in cond.items()}
        else:
            told = {"c_crossattn": [torch.stack([cond, cond])]}
        if host.inpainting:
            told["c_concat"] = [
                processing.txt2img_image_conditioning(shared.sd_model, x, x.shape[3] * 8, x.shape[2] * 8)
            ]
        with devices.autocast():
            theirs = shared.sd_model.apply_model(x, t, told)
        return float((theirs - host.denoise(x, t, host.encode([prompt, prompt]))).abs().max())


def mixed_lengths() -> float:
    """A long prompt and a short one in one batch against each by itself: largest difference."""
    with running.session() as host, torch.no_grad():
        x, t = _sample(host)
        long = ", ".join(["a photo of a red car on a road"] * 14)
        both = Conditioning.cat([host.encode([long]), host.encode(["a cat"])])
        together = host.denoise(x, t, both)
        alone = [host.denoise(x[i : i + 1], t[i : i + 1], host.encode([p])) for i, p in enumerate((long, "a cat"))]
        return float((together - torch.cat(alone)).abs().max())


# -- gradients


def _trainable(deltas: Mapping[str, Factors]) -> dict[str, Factors]:
    return {key: Factors(f.up.clone().requires_grad_(), f.down.clone().requires_grad_()) for key, f in deltas.items()}


def gradients_of(host: Host, name: str, *, recompute: bool = False) -> dict[str, torch.Tensor]:
    """Gradient of each layer's up factor of a loss on the prediction."""
    factors = _trainable(deltas(host, name))
    x, t = _sample(host)
    with host.apply(factors):
        if recompute:
            with host.recomputing():
                prediction = host.denoise(x, t, host.encode(PROMPTS))
        else:
            prediction = host.denoise(x, t, host.encode(PROMPTS))
        prediction.square().mean().backward()
    return {key: f.up.grad for key, f in factors.items()}


def gradients(name: str, attention: str | None = None) -> dict[str, Any]:
    """Layers without gradient, and how far recomputing changes it."""
    from modules import sd_hijack, shared

    if attention:
        sd_hijack.model_hijack.apply_optimizations(attention)
        assert attention.startswith(sd_hijack.model_hijack.optimization_method)
    try:
        with running.session() as host:
            plain = gradients_of(host, name)
            recomputed = gradients_of(host, name, recompute=True)
    finally:
        if attention:
            sd_hijack.model_hijack.apply_optimizations(shared.opts.cross_attention_optimization)
    nothing = [key for key, gradient in plain.items() if gradient is None or not gradient.abs().max() > 0]
    size = sum(float(g.square().sum()) for g in plain.values() if g is not None) ** 0.5

    def apart(others: Mapping[str, torch.Tensor]) -> float:
        squares = [float((plain[k] - others[k]).square().sum()) for k in plain if plain[k] is not None]
        return sum(squares) ** 0.5 / size

    return {"without": nothing, "layers": len(plain), "recomputed": apart(recomputed)}


# -- recording


def recorded(name: str) -> dict[str, Any]:
    """What is recorded of a LoRA's layers, and which of them share an input."""
    with running.session() as host, torch.no_grad():
        keys = sorted(deltas(host, name))
        x, t = _sample(host, 8)

        def run() -> None:
            host.denoise(x, t, host.encode(PROMPTS[:1] * 2))

        serves = shared_inputs(host.layers(), keys, run)
        with record_inputs(host.layers(), dict.fromkeys(keys, 32), seed=0) as recorder:
            run()
        rows = recorder.result()
        layers = host.layers()
        wrong = [key for key in keys if rows[key].shape[1] != layers[key].shape[1]]
        packed = [key for key in keys if key.endswith("out_proj") and layers[key].owner is not layers[key].module]
        return {
            "wrong": wrong,
            "unseen": [key for key in keys if key not in serves],
            "serves": serves,
            "packed_error": max((_out_proj_error(host, layers[key], run) for key in packed), default=0.0),
        }


def _out_proj_error(host: Host, layer: Layer, run: Callable[[], None]) -> float:
    """What is observed before a packed out projection, projected, against what the attention puts out; with a delta on the
    packed projections, which the observation has to see."""
    pairs = []

    def compare(module: torch.nn.Module, arguments: tuple, named: Mapping[str, Any]) -> None:
        inner = layer.observed(module, arguments, named)
        pairs.append(torch.nn.functional.linear(inner, layer.weight, layer.owner.bias))

    def keep(_: torch.nn.Module, __: tuple, output: tuple) -> None:
        pairs.append(output[0])

    query = next(
        key for key, other in host.layers().items() if other.module is layer.module and other.rows == slice(0, 64)
    )
    delta = {query: Factors(torch.randn(64, 2), torch.randn(2, 64))}
    handles = [
        layer.module.register_forward_pre_hook(compare, with_kwargs=True),
        layer.module.register_forward_hook(keep),
    ]
    try:
        with host.apply(delta):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return float((pairs[0] - pairs[1]).abs().max() / pairs[1].abs().max())
