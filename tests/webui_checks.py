"""What the tests look at inside the real WebUI; `webui_process.py` asks for these functions by name."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_loraclr.deltas import layer_factors
from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts import a1111
from lib_loraclr.hosts.base import Conditioning
from lib_loraclr.hosts.substitution import Layer
from lib_loraclr.layer_keys import is_text_encoder
from lib_loraclr.lora_files import read_lora
from lib_loraclr.low_rank import Factors
from lib_loraclr.merge import merge_loras
from lib_loraclr.output import output_path, save_merge
from lib_loraclr.progress import Progress
from lib_loraclr.recording import record_inputs, shared_inputs
from lib_loraclr.request import MergeRequest


def answer(mailbox: str) -> None:
    """Answer questions as they come in, in a thread of its own."""
    threading.Thread(target=_serve, args=(Path(mailbox),), daemon=True).start()


def register_text_encoders(files: Sequence[str]) -> None:
    """Tell open_clip of sizes that the tests made up; before a checkpoint is loaded."""
    import open_clip

    for file in files:
        open_clip.add_model_config(file)


def _serve(mailbox: Path) -> None:
    while True:
        for question in sorted(mailbox.glob("*.question")):
            asked = json.loads(question.read_text("utf-8"))
            question.unlink()
            try:
                result = {"value": globals()[asked["check"]](**asked["arguments"])}
            except Exception:  # noqa: BLE001  (the test shows whatever went wrong)
                result = {"error": traceback.format_exc()}
            draft = question.with_suffix(".reply")
            draft.write_text(json.dumps(result), "utf-8")
            draft.replace(question.with_suffix(".answer"))
        time.sleep(0.02)


# -- pictures, by the WebUI's own API


def picture(prompt: str, **changes: Any) -> str:
    """The hash of the pixels (not of the file, which has the prompt in it)."""
    return hashlib.sha256(_pixels(prompt, **changes).tobytes()).hexdigest()


def _post(route: str, asked: Mapping[str, Any]) -> Any:
    from modules import shared

    url = f"http://127.0.0.1:{shared.cmd_opts.port}/sdapi/v1/{route}"
    body = json.dumps(asked).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as response:
        return json.load(response)


def _get(route: str) -> Any:
    from modules import shared

    with urllib.request.urlopen(f"http://127.0.0.1:{shared.cmd_opts.port}/sdapi/v1/{route}") as response:
        return json.load(response)


def _pixels(prompt: str, **changes: Any):
    import numpy as np

    asked = {
        "prompt": prompt,
        "seed": 7,
        "steps": 4,
        "cfg_scale": 4,
        "width": 128,
        "height": 128,
        "sampler_name": "DDIM",
    }
    encoded = _post("txt2img", {**asked, **changes})["images"][0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def picture_distance(first: str, second: str, **changes: Any) -> float:
    """The largest difference of two pictures' pixels, 0..255."""
    one, other = (_pixels(prompt, **changes).astype(int) for prompt in (first, second))
    return float(abs(one - other).max())


@contextmanager
def settings(**values: Any):
    from modules import shared

    before = {name: getattr(shared.opts, name) for name in values}
    shared.opts.data.update(values)
    try:
        yield
    finally:
        shared.opts.data.update(before)


# -- the host


def ready() -> str:
    from modules import shared

    return shared.sd_model.sd_checkpoint_info.title


def describe() -> dict[str, Any]:
    with a1111.session() as host:
        layers = host.layers()
        return {
            "family": host.family.name,
            "name": host.name,
            "checkpoint": host.checkpoint,
            "size": host.default_size,
            "latent": [host.latent_channels, host.pixels_per_latent],
            "prediction": host.prediction_type,
            "alphas": host.alphas_cumprod[[0, 500, 999]].tolist(),
            "layers": {key: list(layer.shape) for key, layer in layers.items()},
            "idle": _idle(host),
            "aliases": host.aliases,
            "inpainting": host.inpainting,
        }


def _idle(host: a1111.A1111Host) -> list[str]:
    """Layers that a prediction does not run."""
    seen = set()
    handles = [
        layer.module.register_forward_pre_hook(lambda *_, key=key: seen.add(key))
        for key, layer in host.layers().items()
    ]
    try:
        _predict(host)
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
    parts = ("model.diffusion_model.", "cond_stage_model.", "conditioner.", "first_stage_model.")
    # the hijack wraps the text encoders and their embeddings
    model = {
        name.replace(".wrapped.", ".") for name in shared.sd_model.state_dict() if not name.endswith("position_ids")
    }
    return sorted({name for name in names ^ model if name.startswith(parts) and "attn_mask" not in name})


def prediction(prompts: Sequence[str]) -> list[Any]:
    """What the host says of fixed latents, as nested lists."""
    with a1111.session() as host, torch.no_grad():
        x, t = _sample(host)
        return host.denoise(x, t, host.encode(prompts)).tolist()


def missing_keys(name: str) -> dict[str, Any]:
    """Layer keys of a file that the host does not have, and how many layers it has and the WebUI matches."""
    import networks

    with a1111.session() as host:
        found = a1111.find_lora(name)
        keys = set(read_lora(found.path).layers)
        matched = networks.load_network(name, networks.available_networks[found.name]).modules
        unknown = sorted(keys - set(host.layers()) - set(host.aliases))
        return {"unknown": unknown, "keys": len(keys), "matched": len(matched)}


def _deltas(host: a1111.A1111Host, name: str, te: float = 1.0, unet: float = 1.0) -> Mapping[str, Factors]:
    """A LoRA's deltas by layer key, whatever its file calls the layers."""
    deltas = {}
    for key, parameters in read_lora(a1111.find_lora(name).path).layers.items():
        factors = layer_factors(key, parameters, name).scaled(te if is_text_encoder(key) else unet)
        deltas[host.aliases.get(key, key)] = factors.to(host.device)
    return deltas


def delta_errors(name: str) -> float:
    """The largest relative difference between our deltas and the WebUI's `calc_updown`, over all layers."""
    import networks

    with a1111.session() as host:
        network = networks.load_network(name, networks.available_networks[name])
        layers, worst = host.layers(), 0.0
        by_owner = {(id(m.sd_module), name[-7:-5]): m for name, m in network.modules.items()}
        for key, factors in _deltas(host, name).items():
            owner = layers[key].owner
            packed = isinstance(owner, torch.nn.MultiheadAttention)
            [own] = [m for (i, part), m in by_owner.items() if i == id(owner) and (not packed or part == key[-7:-5])]
            theirs, _ = own.calc_updown(layers[key].weight)
            error = (theirs.reshape(factors.shape) - factors.dense()).norm() / theirs.norm()
            worst = max(worst, float(error))
        return worst


def _sample(host: a1111.A1111Host, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, host.latent_channels, size, size, generator=generator)
    return x.to(host.device), torch.tensor([700, 250], device=host.device)


PROMPTS = ("a photo of a sks animal on a red background", "a (pizza:1.3) and a car")


@torch.no_grad()
def _predict(host: a1111.A1111Host) -> torch.Tensor:
    x, t = _sample(host)
    return host.denoise(x, t, host.encode(PROMPTS))


@contextmanager
def _webui_loaded(names: Sequence[str], te: Sequence[float], unet: Sequence[float]):
    import networks

    networks.load_networks(list(names), list(te), list(unet), [None] * len(names))
    try:
        yield
    finally:
        networks.load_networks([])


def alone_like_the_webui(name: str, te: float = 1.0, unet: float = 1.0, functional: bool = False) -> dict[str, float]:
    """Prediction with our substitution against the WebUI's own LoRA, relative to what the LoRA changes."""
    with settings(lora_functional=functional), a1111.session() as host:
        base = _predict(host)
        with host.apply(_deltas(host, name, te, unet)):
            ours = _predict(host)
        with _webui_loaded([name], [te], [unet]):
            theirs = _predict(host)
        with host.apply({}):
            again = _predict(host) if functional else base
        return {
            "error": float((ours - theirs).norm() / (theirs - base).norm()),
            "effect": float((theirs - base).norm() / base.norm()),
            "restored": float((again - base).abs().max()),
        }


def sampler_prediction(prompt: str, **options: Any) -> float:
    """Our encode and denoise against what the WebUI's own sampler computes: largest difference."""
    from modules import devices, processing, prompt_parser, shared

    with settings(**options), a1111.session() as host, torch.no_grad():
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
    with a1111.session() as host, torch.no_grad():
        x, t = _sample(host)
        long = ", ".join(["a photo of a red car on a road"] * 14)
        both = Conditioning.cat([host.encode([long]), host.encode(["a cat"])])
        together = host.denoise(x, t, both)
        alone = [host.denoise(x[i : i + 1], t[i : i + 1], host.encode([p])) for i, p in enumerate((long, "a cat"))]
        return float((together - torch.cat(alone)).abs().max())


# -- leaving everything as it was


def untouched(prompt: str, work: str, names: Sequence[str], functional: bool = False, **changes: Any) -> dict[str, Any]:
    """The same picture before and after a piece of work; and whether anything of ours is left on the model."""
    with settings(lora_functional=functional):
        before = picture(prompt, **changes)
        flags = _traces()
        outcome = _WORKS[work](list(names))
        traces = _traces() == flags and not _hooks()
        return {"same": picture(prompt, **changes) == before, "outcome": outcome, "clean": traces}


def _traces() -> list[Any]:
    from modules import shared

    model = shared.sd_model
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    shadows = [
        name for name, module in model.named_modules() if {"weight", "in_proj_weight", "forward"} & set(vars(module))
    ]
    embedders = [
        getattr(e, "is_trainable", None) for e in getattr(getattr(model, "conditioner", None), "embedders", ())
    ]
    return [trainable, gradients, shadows, embedders, model.training]


def _hooks() -> list[str]:
    from modules import shared

    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.MultiheadAttention)
    return [
        name
        for name, module in shared.sd_model.named_modules()
        if isinstance(module, layers) and (module._forward_hooks or module._forward_pre_hooks)
    ]


class _StopAfter(Progress):
    def __init__(self, evaluations: int) -> None:
        self.left = evaluations

    def interrupted(self) -> bool:
        self.left -= 1
        return self.left <= 0


def request(names: Sequence[str], **changes: Any) -> MergeRequest:
    """A merge that takes seconds."""
    concepts = [{"lora": str(a1111.find_lora(name).path), "trigger": trigger} for name, trigger in names]
    small = {"recording": {"paths": 2, "steps": 2, "height": 128, "width": 128}, "memory_mb": 200}
    return MergeRequest.from_dict({"concepts": concepts, **small, **changes})


def _merge_work(names: list) -> str:
    with a1111.session() as host:
        merge_loras(request([(name, f"trigger{i}") for i, name in enumerate(names)], method="average"), host)
    return "merged"


def _refine_work(names: list) -> str:
    few = {"effort": "balanced", "steps": 2, "batch_size": 2}
    with a1111.session() as host:
        named = [(name, f"trigger{i}") for i, name in enumerate(names)]
        report = merge_loras(request(named, options=few, memory_mb=2000), host).report
    return f"refined in {report.refinement['steps']} steps"


def _interrupt_work(names: list) -> str:
    try:
        with a1111.session() as host:
            merge_loras(request([(name, f"trigger{i}") for i, name in enumerate(names)]), host, _StopAfter(5))
    except Interrupted:
        return "interrupted"
    return "finished"


def _error_work(names: list) -> str:
    try:
        with a1111.session() as host, host.apply(_deltas(host, names[0])):
            gradients_of(host, names[0])
            raise LoraclrError("on purpose")
    except LoraclrError as error:
        return str(error)


_WORKS = {"merge": _merge_work, "refine": _refine_work, "interrupt": _interrupt_work, "error": _error_work}


def interrupted_by_button(names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The WebUI's own Interrupt, while a merge runs: what the bar showed, and how many evaluations of the model began
    after it."""
    from modules import shared

    pressed: dict[str, Any] = {}

    def press() -> None:
        time.sleep(2)
        pressed.update(text=shared.state.textinfo, progress=_get("progress")["progress"])
        _post("interrupt", {})
        pressed["at"] = time.monotonic()

    threading.Thread(target=press, daemon=True).start()
    try:
        with a1111.session(job="a test") as host:
            begun, denoise = [], host.denoise
            host.denoise = lambda *given: begun.append(time.monotonic()) or denoise(*given)
            progress = a1111.StateProgress({"recording the LoRAs": 60.0, "refining": 60.0})
            merge_loras(request([tuple(pair) for pair in names], recording={"paths": 8, "steps": 16}), host, progress)
    except Interrupted:
        late = sum(moment > pressed["at"] for moment in begun)
        return {**pressed, "late": late, "job_after": shared.state.job, "lock_free": _lock_is_free()}
    return {"finished": True}


def _lock_is_free() -> bool:
    from modules import call_queue

    with call_queue.queue_lock:
        return True


# -- gradients


def _trainable(deltas: Mapping[str, Factors]) -> dict[str, Factors]:
    return {key: Factors(f.up.clone().requires_grad_(), f.down.clone().requires_grad_()) for key, f in deltas.items()}


def gradients_of(host: a1111.A1111Host, name: str, *, recompute: bool = False) -> dict[str, torch.Tensor]:
    """Gradient of each layer's up factor of a loss on the prediction."""
    factors = _trainable(_deltas(host, name))
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
        with a1111.session() as host:
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
    with a1111.session() as host, torch.no_grad():
        keys = sorted(_deltas(host, name))
        x, t = _sample(host, 8)

        def run() -> None:
            host.denoise(x, t, host.encode(PROMPTS[:1] * 2))

        serves = shared_inputs(host.layers(), keys, run)
        with record_inputs(host.layers(), dict.fromkeys(keys, 32), seed=0) as result:
            run()
        rows = result()
        layers = host.layers()
        wrong = [key for key in keys if rows[key].shape[1] != layers[key].shape[1]]
        packed = [key for key in keys if key.endswith("out_proj") and layers[key].owner is not layers[key].module]
        return {
            "wrong": wrong,
            "unseen": [key for key in keys if key not in serves],
            "serves": serves,
            "packed_error": max((_out_proj_error(host, layers[key], run) for key in packed), default=0.0),
        }


def _out_proj_error(host: a1111.A1111Host, layer: Layer, run: Callable[[], None]) -> float:
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


# -- merging


def merge(
    names: Sequence[Sequence[str]], output: str | None = None, overwrite: bool = False, **changes: Any
) -> dict[str, Any]:
    """Merge, and with `output` keep the file; retention, and how the file compares with the result in memory."""
    with a1111.session() as host:
        progress = a1111.StateProgress()
        done = merge_loras(request([tuple(pair) for pair in names], **changes), host, progress)
        result = {"concepts": [asdict(c) for c in done.report.concepts], "layers": done.report.layers}
        if output is None:
            return result
        path = output_path(a1111.lora_dir(), output)
        save_merge(done, host, path, overwrite=overwrite)
        described = a1111.announce(path, lock_held=True)
        base = _predict(host)
        with host.apply(done.factors):
            memory = _predict(host)
        with _webui_loaded([described.alias], [1.0], [1.0]):
            file = _predict(host)
        result["file"] = {
            "error": float((memory - file).abs().max()),
            "effect": float((memory - base).abs().max()),
            "alias": described.alias,
            "family": described.family,
        }
        return result


def saved_ways(names: Sequence[Sequence[str]], prompt: str, **changes: Any) -> dict[str, float]:
    """One merge as a full file and in a copy of the checkpoint: how far their pictures are from each other, mean of 0..255."""
    with a1111.session() as host:
        done = merge_loras(request([tuple(pair) for pair in names], save_as="checkpoint", **changes), host)
        baked = output_path(a1111.checkpoint_dir(), a1111.free_checkpoint_name("baked"))
        save_merge(done, host, baked)
        full = replace(done, request=replace(done.request, save_as="full", precision="fp32"))
        save_merge(full, host, output_path(a1111.lora_dir(), "whole"), overwrite=True)
        a1111.announce(output_path(a1111.lora_dir(), "whole"), lock_held=True)
        listed = a1111.announce_checkpoint(baked)
    before = describe()["checkpoint"]
    base, tagged = _pixels(prompt).astype(int), _pixels(f"{prompt} <lora:whole:1>").astype(int)
    try:
        _post("options", {"sd_model_checkpoint": listed.title})
        switched = describe()["checkpoint"]
        copied = _pixels(prompt).astype(int)
    finally:
        _post("options", {"sd_model_checkpoint": before})
    again = _pixels(prompt).astype(int)
    return {
        "checkpoint": switched,
        "effect": float(abs(tagged - base).mean()),
        "apart": float(abs(copied - tagged).mean()),
        "base_again": float(abs(again - base).max()),
    }


def library() -> list[dict[str, Any]]:
    return [
        {**asdict(lora), "path": str(lora.path), "preview": str(lora.preview), "folder": lora.folder}
        for lora in a1111.installed_loras()
    ]


def free_name(wanted: str, sub_folder: str = "") -> str:
    return a1111.free_name(wanted, sub_folder)
