"""One script for a first day on a graphics card: is it right there, how fast, and how much memory does it take.

    python dev.py bench card --device cuda
    python dev.py bench card --device cpu --small

Parts, in the order of what matters: `precisions` (a merge of two on the demo checkpoint in fp32, fp16 and bf16 against fp32 on
the CPU, weights left bit for bit), `gradients`, `interrupt`, `steps` (a refinement step with weights that are changed and with
branches beside them), `sd15` (a whole merge at its true shapes, and what more concepts would take), `out_of_memory`, `sdxl`
(small, in fp16). What was found is written after each part; the exit status is 1 where one is not right. With `--keep-pace` what
`sd15` took becomes what Check and `--dry-run` expect of such devices (`lib_loraclr/merge/paces.json`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.cells import Cells
from bench.clock import Clock
from bench.judge import DEMO
from bench.random_models import random_host, random_lora
from bench.refinement_step import compare_steps
from bench.shapes import SD15, SDXL
from lib_loraclr.errors import Interrupted
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import Pace, keep_pace, memory_needs, merge_loras, plan_stages, seconds_per_sample
from lib_loraclr.model import Host
from lib_loraclr.output import Merge
from lib_loraclr.progress import Stage, Work
from lib_loraclr.recording import load_inputs, make_teachers
from lib_loraclr.refining.trained import TrainedFactors
from lib_loraclr.request import Concept, MergeRequest, RecordingOptions
from lib_loraclr.solving import Procedure

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: CPUs are slow in half precision, and in fp16 not every torch has all that it takes
ON_CPU = ("fp32", "bf16")
DEMO_LORAS = {"fox-face": "sks animal", "pizza": "vbk food"}
#: how far retention in another precision or on another device may lie from that in fp32 on the CPU
CLOSE = 0.01


def demo_request(*, small: bool) -> MergeRequest:
    """Two of the demo's concepts, with as much of everything as the time allows: asking a card for small work takes longer than
    doing it."""
    concepts = tuple(
        Concept(str(DEMO / "loras" / f"{name}.safetensors"), trigger=words) for name, words in DEMO_LORAS.items()
    )
    side, paths = (64, 1) if small else (128, 4)
    recording = RecordingOptions(paths=paths, steps=4, guidance=4.0, height=side, width=side)
    options = {"steps": 2 if small else 16, "batch_size": 2 if small else 4, "scenes": 2 if small else 4}
    options |= {"layer_steps": 1, "rollouts": 1}
    return MergeRequest(concepts, options=options, recording=recording, precision="fp32")


def demo_host(device: str, precision: str) -> Host:
    return load(DEMO / "emoji-sd1.safetensors", device=device, dtype=DTYPES[precision])


def fingerprint(host: Host) -> str:
    """Of all weights, bit for bit, and of what else a merge could leave behind."""
    digest = hashlib.sha256()
    for key, layer in sorted(host.layers().items()):
        digest.update(layer.weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        hooks = len(layer.module._forward_hooks), len(layer.module._forward_pre_hooks), sorted(layer.owner.__dict__)
        digest.update(repr((key, hooks)).encode())
    return digest.hexdigest()


def precisions(device: str, small: bool) -> dict:
    """Retention of a merge in each precision, beside that in fp32 on the CPU."""
    request, found = demo_request(small=small), {}
    reference = _retentions(merge_loras(request, demo_host("cpu", "fp32")))
    for name in DTYPES if device == "cuda" else ("fp32",):
        host = demo_host(device, name)
        before, begun = fingerprint(host), time.perf_counter()
        merge = merge_loras(request, host)
        seconds, retentions = time.perf_counter() - begun, _retentions(merge)
        found[name] = {
            "retention": retentions,
            "apart": max(abs(a - b) for a, b in zip(retentions, reference, strict=True)),
            "weights restored": fingerprint(host) == before,
            "finite": all(f.up.isfinite().all() and f.down.isfinite().all() for f in merge.factors.values()),
            "seconds": seconds,
        }
    right = all(r["weights restored"] and r["finite"] and r["apart"] <= CLOSE for r in found.values())
    return {"right": right, "reference": reference, **found}


def _retentions(merge: Merge) -> list[float]:
    return [concept.merged for concept in merge.report.concepts]


def gradients(device: str, small: bool) -> dict:
    """Gradients of all factors in each precision: finite, and in the direction of those in fp32 on the CPU."""
    del small
    reference, found = _gradient(demo_host("cpu", "fp32")), {}
    for name in DTYPES if device == "cuda" else ON_CPU:
        own = _gradient(demo_host(device, name))
        cosine = torch.nn.functional.cosine_similarity(own, reference, dim=0)
        found[name] = {"finite": bool(own.isfinite().all()), "cosine": float(cosine)}
    return {"right": all(r["finite"] and r["cosine"] > 0.98 for r in found.values()), **found}


def _gradient(host: Host) -> torch.Tensor:
    """Of the squared prediction at two points, by all factors of a LoRA; scaled so that half precision can hold them."""
    concept = Concept(str(DEMO / "loras" / "fox-face.safetensors"), trigger=DEMO_LORAS["fox-face"])
    trained = TrainedFactors(load_inputs([concept], host)[0].deltas, host)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, host.latent_channels, 16, 16, generator=generator).to(host.device)
    with host.apply(trained.applied):
        prediction = host.denoise(x, torch.tensor([300, 800], device=host.device), host.encode(["a sks animal"] * 2))
        (256.0 * prediction.square().mean()).backward()
    trained.gather()
    return trained.gradients.cpu()


class _Stopping(Clock):
    """Interrupts while a merge is refined."""

    def interrupted(self) -> bool:
        return self.stage is Stage.REFINING


def interrupt(device: str, small: bool) -> dict:
    """What is left of a merge that was interrupted while it was refined."""
    host = demo_host(device, "fp32")
    before, held = fingerprint(host), _allocated(device)
    try:
        merge_loras(demo_request(small=small), host, _Stopping(device))
        stopped = False
    except Interrupted:
        stopped = True
    left = _allocated(device) - held
    restored = fingerprint(host) == before
    return {
        "right": stopped and restored and left <= 0.02 * max(held, 1),
        "stopped": stopped,
        "weights restored": restored,
        "bytes left": left,
    }


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def out_of_memory(device: str, small: bool) -> dict:
    """A merge within a cap on the process's memory that it does not fit into at first."""
    if device != "cuda":
        return {"right": True, "skipped": "needs a graphics card"}
    host = random_host(SD15.small() if small else SD15, device=device, dtype=torch.float16)
    total = torch.cuda.get_device_properties(0).total_memory
    before = torch.cuda.memory_stats().get("num_ooms", 0)
    # weights, the CUDA libraries' own, and about a gigabyte for everything that a merge needs
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 30)) / total)
    try:
        with tempfile.TemporaryDirectory() as folder:
            request = _random_request(host, Path(folder), 2, paths=1, steps=2, options={"steps": 2})
            merge_loras(request, host)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    met = torch.cuda.memory_stats().get("num_ooms", 0) - before
    return {"right": met > 0, "ran out": met}


def _random_request(
    host: Host, folder: Path, number: int, *, paths: int, steps: int, options: dict, rank: int = 32
) -> MergeRequest:
    concepts = tuple(
        Concept(str(random_lora(host, folder / f"lora{i}.safetensors", rank=rank, seed=i)), trigger=f"word{i}")
        for i in range(number)
    )
    return MergeRequest(
        concepts, options=options, recording=RecordingOptions(paths=paths, steps=steps), precision="fp16"
    )


def sd15(device: str, small: bool) -> dict:
    """A merge of two at SD1.5's true shapes with the recording that a user gets, and what other merges would take by it."""
    architecture, dtype = (SD15.small() if small else SD15), (torch.float32 if device == "cpu" else torch.float16)
    paths, steps = (1, 2) if device == "cpu" else (32, 8)
    return _whole(architecture, device, dtype, paths=paths, steps=steps, side=_side(device, small))


def _side(device: str, small: bool) -> int:
    """Of the pictures; a CPU takes a minute for what a card does in a second."""
    return (64 if small else 256) if device == "cpu" else 0


def sdxl(device: str, small: bool) -> dict:
    """A merge of two on a small SDXL, in fp16 where the device has it."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    return _whole(SDXL.small(), device, dtype, paths=2, steps=2, side=_side(device, small))


def _whole(architecture, device: str, dtype: torch.dtype, *, paths: int, steps: int, side: int) -> dict:
    host = random_host(architecture, device=device, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        options = {"effort": "fast", **({"steps": 2} if device == "cpu" else {})}
        request = _random_request(host, Path(folder), 2, paths=paths, steps=steps, options=options)
        request = replace(request, recording=replace(request.recording, height=side, width=side))
        clock = Clock(device)
        merge = merge_loras(request, host, clock)
        clock.finish()
        needs = memory_needs(request, merge.inputs, host, refines=True)
    side = side or host.default_size
    evaluation, each = seconds_per_sample(host, side, side), clock.seconds_per_unit()
    pace = Pace.of(each, evaluation)
    finite = all(f.up.isfinite().all() and f.down.isfinite().all() for f in merge.factors.values())
    return {
        "right": bool(finite),
        "seconds": {stage.value: round(span.wall, 2) for stage, span in clock.spans.items()},
        "peak_mb": {stage.value: round(span.peak) for stage, span in clock.spans.items()},
        "check_says_mb": round(needs.device),
        "evaluation_seconds": evaluation,
        "pace": asdict(pace),
        "expected_seconds": {
            f"{number} concepts, {effort}": round(_expected(request, host, number, effort, each))
            for number in (2, 4, 12)
            for effort in ("fast", "balanced", "thorough")
        },
    }


def _expected(request: MergeRequest, host: Host, number: int, effort: str, each: Mapping[Work, float]) -> float:
    """Seconds that a merge of so many with the usual recording would take."""
    concepts = tuple(Concept(f"concept {i}", trigger=f"concept {i}") for i in range(number))
    usual = replace(request, concepts=concepts, options={"effort": effort}, recording=RecordingOptions())
    procedure = Procedure.of(usual)
    teachers = make_teachers(concepts, usual.prompts)
    text = sum(key.startswith("lora_te") for key in host.layers())
    layers = (text, len(host.layers()) - text)
    planned = plan_stages(usual, procedure.method, procedure.refinement(number), teachers, layers=layers)
    return sum(item.amount * each.get(item.work, 0.0) for item in planned)


PARTS: dict[str, Callable[[str, bool], dict]] = {
    "precisions": precisions,
    "gradients": gradients,
    "interrupt": interrupt,
    "steps": compare_steps,
    "sd15": sd15,
    "out_of_memory": out_of_memory,
    "sdxl": sdxl,
}


def described(device: str) -> dict:
    """What this ran on."""
    found = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory_mb": properties.total_memory >> 20, "cuda": torch.version.cuda}
    return found


def _seen_on(machine: dict) -> str:
    where = machine.get("card") or f"{machine['threads']} threads of a CPU"
    return f"{where}, torch {machine['torch']}, the shapes of SD1.5"


def run(part: str, device: str, small: bool) -> dict:
    """One part; what goes wrong in it does not end the others."""
    begun = time.perf_counter()
    try:
        found = PARTS[part](device, small)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one of the findings
        traceback.print_exc()
        found = {"right": False, "error": f"{type(error).__name__}: {error}"}
    if device == "cuda":
        torch.cuda.empty_cache()
    return found | {"took": round(time.perf_counter() - begun, 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument(
        "--small", action="store_true", help="small models and few steps: whether the part itself works"
    )
    parser.add_argument(
        "--keep-pace",
        action="store_true",
        help="expect of such devices, from now on, what sd15 took (not with --small)",
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="which (default: all)")


def main(arguments: argparse.Namespace) -> None:
    """Everything is measured again: what it is for is whether it is right here and now.

    Raises:
        SystemExit: something is not right
    """
    if arguments.keep_pace and arguments.small:
        raise SystemExit("--keep-pace: what a small model takes says nothing of others; leave --small out.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cells, results = Cells("card", arguments.results), {"machine": described(arguments.device)}
    print(json.dumps(results["machine"]), flush=True)
    for part in arguments.parts:
        results[part] = run(part, arguments.device, arguments.small)
        print(f"{part}: {json.dumps(results[part], indent=1)}", flush=True)
        cells.publish(json.dumps(results, indent=1), "card.json")
    wrong = [part for part in arguments.parts if not results[part]["right"]]
    if arguments.keep_pace and not wrong and "sd15" in results:
        keep_pace(arguments.device, Pace(**results["sd15"]["pace"]), _seen_on(results["machine"]))
    print("all right" if not wrong else f"not right: {', '.join(wrong)}")
    if wrong:
        raise SystemExit(1)
