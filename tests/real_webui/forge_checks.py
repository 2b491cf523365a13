"""What the tests look at inside the real WebUIs of the Forge family, each time against Forge's own way of doing it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from webui_checks import PROMPTS, _sample, deltas, predict
from webui_pictures import settings
from webui_work import request

from lib_loraclr.hosts import running
from lib_loraclr.hosts.forge import engine
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors
from lib_loraclr.output.saving import save_merge
from lib_loraclr.recording.inputs import load_input
from lib_loraclr.request.merge_request import Concept
from lib_loraclr.request.output_names import output_path


def _model() -> Any:
    return engine.load_chosen_model()


def parts() -> dict[str, nn.Module]:
    """The UNet and the text encoders that are loaded."""
    objects = _model().forge_objects_original
    return {"unet": objects.unet.model, "clip": objects.clip.cond_stage_model}


def weights() -> str:
    """A hash of every bit of every parameter, and of whether it was made as Forge makes them."""
    digest = hashlib.sha256()
    for name, part in parts().items():
        for path, parameter in part.named_parameters():
            digest.update(f"{name} {path} {parameter.dtype} {parameter.is_inference()}".encode())
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _applied(names: Sequence[str], te: Sequence[float], unet: Sequence[float]) -> Iterator[Any]:
    """Forge's model with its own LoRAs in the weights."""
    import networks
    from modules import call_queue

    with call_queue.queue_lock:
        model = _model()
        networks.load_networks(list(names), list(te), list(unet))
        objects = model.forge_objects
        engine.module("memory_management").load_models_gpu([objects.unet, objects.clip.patcher])
        try:
            yield model
        finally:
            networks.load_networks([], [], [])


@torch.inference_mode()
def official(
    names: Sequence[str] = (), te: Sequence[float] = (), unet: Sequence[float] = (), prompts: Sequence[str] = PROMPTS
) -> Tensor:
    """The noise that Forge's own sampling would predict, `[b, c, h, w]`, by its own LoRAs, conditioning and `apply_model`."""
    from modules import prompt_parser, shared

    with _applied(names, te, unet) as model:
        kernel, results = model.forge_objects.unet.model, []
        x, t = _sample(_Device(model.forge_objects.unet.load_device))
        if engine.is_forge():
            model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
        for row, (prompt, step) in enumerate(zip(prompts, t.tolist(), strict=True)):
            size = {"width": x.shape[3] * 8, "height": x.shape[2] * 8}
            text = prompt_parser.SdConditioning([prompt], is_negative_prompt=not prompt, **size)
            found = model.get_learned_conditioning(text)
            told = {"c_crossattn": found}
            if isinstance(found, dict):
                told = {"c_crossattn": found["crossattn"], "y": found["vector"]}
            schedule = kernel.predictor if engine.is_forge() else kernel.model_sampling
            sigma = schedule.sigmas[step].reshape(1).to(x)
            given = x[row : row + 1] * (1 + sigma**2) ** 0.5
            clean = kernel.apply_model(given, sigma, **told)
            results.append((given - clean) / sigma)
    return torch.cat(results)


class _Device:
    """As much of a host as `_sample` asks for."""

    latent_channels = 4

    def __init__(self, device: torch.device) -> None:
        self.device = device


def alone_like_forge(name: str, te: float = 1.0, unet: float = 1.0) -> dict[str, Any]:
    """Prediction with our substitution against Forge's own LoRA, relative to what the LoRA changes."""
    base = official()
    before = weights()
    theirs = official([name], [te], [unet])
    with_lora = weights()
    with running.session() as host:
        ours_base = predict(host)
        with host.apply(deltas(host, name, te, unet)):
            ours = predict(host)
        again = predict(host)
    return {
        "error": float((ours - theirs).norm() / (theirs - base).norm()),
        "effect": float((theirs - base).norm() / base.norm()),
        "base_error": float((ours_base - base).norm() / base.norm()),
        "restored": float((again - ours_base).abs().max()),
        "same weights": weights() == before != with_lora,
        "same prediction": torch.equal(official(), base),
    }


def prompt_like_forge(prompt: str, **options: Any) -> float:
    """Our encode and denoise of a prompt against Forge's: largest difference, relative to the prediction."""
    with settings(**options):
        theirs = official(prompts=[prompt, prompt])
        with running.session() as host, torch.no_grad():
            x, t = _sample(host)
            ours = host.denoise(x, t, host.encode([prompt, prompt]))
    return float((ours - theirs).abs().max() / theirs.abs().max())


def left_as_it_was(names: Sequence[str]) -> dict[str, bool]:
    """Whether a merge that refines, and one that fails, leave weights, modules and flags as they found them."""
    ones = [1.0] * len(names)
    official(names, ones, ones)
    official()  # reForge's own restoring leaves what it restored untrainable
    clean, marks, found = weights(), _marks(), {}
    official(names, ones, ones)  # LoRAs in the weights, as a picture leaves them
    found["LoRAs were in the weights"] = weights() != clean
    few = {"effort": "balanced", "steps": 2, "batch_size": 2}
    with running.session() as host:
        merge_loras(request([(name, f"trigger{i}") for i, name in enumerate(names)], options=few, memory_mb=2000), host)
    found["refined"] = weights() == clean and _marks() == marks
    try:
        with running.session() as host, host.apply(deltas(host, names[0])), host.recomputing():
            predict(host)
            raise RuntimeError("on purpose")
    except RuntimeError:
        found["failed"] = weights() == clean and _marks() == marks
    return found


def _marks() -> list[Any]:
    """What of ours could be left on the modules, or on the engine."""
    blocks, names = (
        engine.module("nn.unet"),
        ("attention_function", "optimized_attention", "optimized_attention_masked"),
    )
    found: list[Any] = [getattr(blocks, name, None) for name in names]
    found.append(engine.module("memory_management").get_free_memory)
    for part in parts().values():
        for path, module in part.named_modules():
            hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
            found.append((path, {"weight", "bias", "forward"} & set(vars(module)), hooks))
            found += [p.requires_grad for p in module.parameters(recurse=False)]
            found += [p.grad is None for p in module.parameters(recurse=False)]
    return found


def kept_like_memory(names: Sequence[Sequence[str]], output: str, overwrite: bool = False, **changes: Any) -> dict:
    """A merge that is kept: Forge's own prediction with the file against ours with the result in memory, and against the tags."""
    base = official()
    with running.session() as host:
        done = merge_loras(request([tuple(pair) for pair in names], **changes), host)
        path = output_path(running.lora_dir(), output)
        save_merge(done, path, overwrite=overwrite)
        described = running.announce(path, lock_held=True)
        with host.apply(done.factors):
            memory = predict(host)
    ones = [1.0] * len(names)
    file, tags = official([described.alias], [1.0], [1.0]), official([name for name, _ in names], ones, ones)
    effect = float((file - base).norm())
    return {
        "concepts": [concept.merged for concept in done.report.concepts],
        "family": described.family,
        "memory": float((memory - file).norm()) / effect,
        "tags": float((tags - file).norm()) / effect,
        "effect": effect / float(base.norm()),
    }


def unknown_tensors(name: str) -> list[str]:
    """Tensors of a LoRA file that lead Forge nowhere."""
    lora, rest = engine.module("patcher.lora"), load_file(running.find_lora(name).path)
    with running.session() as host:
        objects = host.model.forge_objects_original
        unet = lora.model_lora_keys_unet(objects.unet.model, {})
        clip = lora.model_lora_keys_clip(objects.clip.cond_stage_model, {})
        if not engine.is_forge():
            with _warned() as lines:
                lora.load_lora(rest, {**unet, **clip})
            return sorted(line.removeprefix("lora key not loaded: ") for line in lines)
        for keys in (unet, clip):
            _, rest = lora.load_lora(rest, keys)
        return sorted(rest)


@contextmanager
def _warned() -> Iterator[list[str]]:
    """What is logged as a warning meanwhile."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


# -- gradients


def finite_differences(name: str, layers: int = 12) -> dict[str, Any]:
    """Derivative of a loss along each layer's factor, by the backward pass, plain and recomputed, against two losses' difference.

    Args:
        layers: how many of the text encoders and of the UNet are looked at, those whose factors the loss depends on most

    Returns:
        for each of these layers how far plain and recomputed are from the difference, relative; and how far the recomputed
        gradient of any layer is from its plain one
    """
    with running.session() as host:
        found = {key: Factors(f.up.clone().requires_grad_(), f.down.clone()) for key, f in deltas(host, name).items()}
        gradients = []
        for recompute in (False, True):
            with host.apply(found):
                loss = _loss(host, recompute)
                loss.backward()
            gradients.append({key: f.up.grad.clone() for key, f in found.items() if f.up.grad is not None})
            for factors in found.values():
                factors.up.grad = None
        plain, recomputed = gradients
        chosen = []
        for start in ("lora_te1_", "lora_te2_", "lora_te_", "lora_unet_"):
            own = [key for key in plain if key.startswith(start)]
            chosen += sorted(own, key=lambda key: -float(plain[key].norm()))[:layers]
        errors = {}
        for key in chosen:
            slope, up = float(plain[key].norm()), found[key].up.detach()
            # far enough for the loss to change by more than it is rounded
            step = plain[key] / slope * min(2e-3 * float(loss) / slope, 0.05 * float(up.norm()))
            values = []
            for sign in (1, -1):
                with torch.no_grad(), host.apply({**found, key: Factors(up + sign * step, found[key].down)}):
                    values.append(float(_loss(host, False)))
            numeric = (values[0] - values[1]) / (2 * float(step.norm()))
            along = float((recomputed[key] * plain[key]).sum()) / slope
            errors[key] = [abs(slope / numeric - 1), abs(along / numeric - 1)]
        largest = max(float(gradient.norm()) for gradient in plain.values())
        apart = {
            key: float((recomputed[key] - plain[key]).norm()) / max(float(plain[key].norm()), 1e-4 * largest)
            for key in plain
        }
        return {"errors": errors, "recomputed": max(apart.values()), "layers": len(apart)}


def _loss(host: Host, recompute: bool) -> Tensor:
    x, t = _sample(host)
    with host.recomputing() if recompute else nullcontext():
        prediction = host.denoise(x, t, host.encode(PROMPTS))
    return prediction.double().square().mean()


# -- embeddings


def _databases(model: Any) -> list[Any]:
    """Of the embeddings that prompts call: one for each text encoder, in reForge one for all."""
    if engine.is_forge():
        return [reader.embeddings for reader in engine.text_engines(model).values()]
    from modules import sd_hijack

    return [sd_hijack.model_hijack.embedding_db]


@torch.no_grad()
def embeddings_like_forge(name: str, prompt: str) -> dict[str, Any]:
    """Conditioning of a prompt with what a LoRA bundles, ours against that of the same embedding installed in a folder of Forge's
    embeddings; and what is known afterwards."""
    with running.session() as host:
        given = load_input(Concept(str(running.find_lora(name).path)), host)
        databases = _databases(host.model)
        before = [(sorted(database.word_embeddings), sorted(database.ids_lookup)) for database in databases]
        without = host.encode([prompt]).tensors["context"]
        with host.knowing(given.file.embeddings) as warnings:
            ours = host.encode([prompt]).tensors["context"]
        after = [(sorted(database.word_embeddings), sorted(database.ids_lookup)) for database in databases]
        [(key, vectors)] = given.file.embeddings.items()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{key.split('.')[1]}.pt"
            torch.save({"string_to_param": {"*": vectors}, "name": file.stem}, file)
            for database in databases:
                database.expected_shape = -1  # the tests' text encoders are narrower than any that Forge knows
                database.load_from_file(str(file), file.name)
            theirs = host.encode([prompt]).tensors["context"]
            for database in databases:
                database.register_embedding_by_name(None, *(() if engine.is_forge() else (host.model,)), file.stem)
    return {
        "error": float((ours - theirs).norm() / theirs.norm()),
        "effect": float((without - theirs).norm() / theirs.norm()),
        "forgotten": before == after,
        "warnings": list(warnings),
    }
