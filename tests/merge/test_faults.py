"""Whatever goes wrong at whatever moment of a merge, the model is as it was: no hook, no changed weight, no memory, no file.

    LORACLR_FAULTS=500 pytest tests/merge/test_faults.py

tries more moments than a test run has time for.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.hosts.diffusers import DiffusersHost
from lib_loraclr.merge import stage_plan, stages
from lib_loraclr.merge.merging import merge_loras
from lib_loraclr.output.preview import PreviewOptions, draw_pictures
from lib_loraclr.output.saving import save_merge
from lib_loraclr.progress import PlannedStage, Progress, Stage
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from tests import tiny_checkpoints as tiny
from tests.leftovers import count_hooks, digest, tensor_bytes
from tests.small import PROMPTS, measure_on_little
from tests.tiny_hosts import Open, predict, random_lora

EXAMPLES = int(os.environ.get("LORACLR_FAULTS", "12"))
#: what happens at the chosen moment
ERRORS: dict[str, Callable[[], BaseException]] = {
    "the host raises": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "a NaN is found": lambda: ArithmeticError("A tensor with all NaNs was produced in Unet."),
    "the card is full": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory."),
    "the RAM is full": lambda: MemoryError(),
    "interrupted": lambda: Interrupted(),
    "ended by Ctrl-C": lambda: KeyboardInterrupt(),
    "a mistake is found late": lambda: LoraclrError("Something a person can mend."),
}
#: what is done to a LoRA's file at the chosen moment, and the merge goes on
MISCHIEF: dict[str, Callable[[Path], object]] = {
    "a LoRA is deleted": lambda path: path.unlink(missing_ok=True),
    "a LoRA is replaced": lambda path: path.write_bytes(b"something else"),
}


@dataclass
class Faults:
    """Counts the moments of a merge, and lets one of them go wrong.

    Attributes:
        moment: the number of the moment; None for none
        happens: what happens then
        seen: the moments so far, by where they are
    """

    moment: int | None = None
    happens: Callable[[], object] = lambda: None
    seen: list[str] = field(default_factory=list)

    def pass_by(self, where: str) -> None:
        self.seen.append(where)
        if len(self.seen) - 1 == self.moment:
            self.happens()

    def around(self, function: Callable[..., Any], where: str) -> Callable[..., Any]:
        """The function with a moment before it and one after it."""

        def counted(*arguments: Any, **named: Any) -> Any:
            self.pass_by(f"before {where}")
            result = function(*arguments, **named)
            self.pass_by(f"after {where}")
            return result

        return counted

    def around_context(self, function: Callable[..., Any], where: str) -> Callable[..., Any]:
        """A context manager with a moment before it is entered, inside, and as it is left."""

        @contextmanager
        def counted(*arguments: Any, **named: Any) -> Iterator[Any]:
            self.pass_by(f"entering {where}")
            with function(*arguments, **named) as value:
                self.pass_by(f"inside {where}")
                yield value
                self.pass_by(f"leaving {where}")

        return counted

    @contextmanager
    def let_in(self, host: DiffusersHost, folder: Path) -> Iterator[None]:
        """At every call of the host, of a layer inside it, of a backward pass, and of what writes files."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("encode", "denoise", "decode"):
                patch.setattr(host, name, self.around(getattr(host, name), name))
            for name in ("apply", "knowing", "skipping", "recomputing"):
                patch.setattr(host, name, self.around_context(getattr(host, name), name))
            middle = host.unet.mid_block.attentions[0]
            patch.setattr(middle, "forward", self.around(middle.forward, "a layer of the UNet"))
            layer = host.text_encoders[0].model
            patch.setattr(layer, "forward", self.around(layer.forward, "the text encoder"))
            patch.setattr(torch.Tensor, "backward", self.around(torch.Tensor.backward, "a backward pass"))
            patch.setattr(torch.linalg, "qr", self.around(torch.linalg.qr, "a layer's solution"))
            patch.setattr(torch.linalg, "eigh", self.around(torch.linalg.eigh, "a layer's solution"))
            patch.setattr(torch.linalg, "svd", self.around(torch.linalg.svd, "a layer's rank"))
            patch.setattr(os, "fsync", self.around(os.fsync, "writing"))
            patch.setattr(os, "link", self.around(os.link, "placing"))
            patch.setattr(tempfile, "tempdir", str(folder))
            yield


class Watched(Progress):
    """A person's progress bar, at which a merge is interrupted."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def plan(self, stages: list[PlannedStage]) -> None:
        self._faults.pass_by("the plan")

    def start(self, stage: Stage, total: int) -> None:
        self._faults.pass_by(f"beginning {stage.value}")

    def advance(self, units: int = 1, note: str = "") -> None:
        self._faults.pass_by("progress")


def models_of(host: DiffusersHost) -> list[nn.Module]:
    return [host.unet, host.vae, *(encoder.model for encoder in host.text_encoders)]


def state_of(host: DiffusersHost) -> dict[str, Any]:
    """All that a merge could leave behind in a model and in torch."""
    models, shadows, modes, gradients = models_of(host), [], [], []
    for model in models:
        for name, module in model.named_modules():
            shadows += [f"{name}.{key}" for key in module._parameters if key in vars(module)]
            shadows += [f"{name}.forward"] if "forward" in vars(module) else []
            modes.append((module.training, getattr(module, "gradient_checkpointing", None)))
        gradients += [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return {
        "weights": digest(models),
        "hooks": count_hooks(models),
        "shadowed": shadows,
        "modes": modes,
        "gradients": gradients,
        "clip skip": host.clip_skip,
        "embeddings": [dict(encoder.vectors) for encoder in host.text_encoders],
        "torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.backends.cuda.matmul.allow_tf32),
    }


def merge_and_save(host: DiffusersHost, folder: Path, effort: str, faults: Faults) -> None:
    """All that a door does: the merge, its picture, its files."""
    concepts = tuple(Concept(str(folder / f"{name}.safetensors")) for name in ("one", "two"))
    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    options = {"effort": effort} if effort == "layers" else {"effort": effort, "steps": 2, "batch_size": 2}
    asked = MergeRequest(concepts, options=options, prompts=PROMPTS, recording=recording)
    progress = Watched(faults)
    with faults.let_in(host, folder / "temporary"):
        merge = merge_loras(asked, host, progress)
        pictures = draw_pictures(merge, host, PreviewOptions(steps=1, pairs=1), progress)
        save_merge(merge, folder / "out" / "zoo.safetensors", preview=pictures.card, overwrite=True)


def few_layers(path: Path) -> bytes:
    """A LoRA file cut to some layers of the text encoder and the UNet: there are as many moments as anybody could try."""
    kept = ("text_model_encoder_layers_0_mlp", "mid_block_attentions_0", "conv_in")
    tensors = {name: tensor for name, tensor in load_file(path).items() if any(part in name for part in kept)}
    save_file(tensors, path, {"modelspec.trigger_phrase": f"word {path.stem}"})
    return path.read_bytes()


class World:
    """A tiny checkpoint, two LoRAs, and what a merge of them leaves behind: nothing."""

    def __init__(self, host: DiffusersHost, folder: Path) -> None:
        self.host, self.folder = host, folder
        (folder / "temporary").mkdir()
        self._files = {
            name: few_layers(random_lora(folder / f"{name}.safetensors", host, seed=seed))
            for seed, name in enumerate(("one", "two"))
        }
        self.moments: dict[str, list[str]] = {}
        for effort in ("layers", "balanced"):
            counted = Faults()
            merge_and_save(host, folder, effort, counted)
            self.moments[effort] = counted.seen
        self.written = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
        self.state, self.picture, self.memory = state_of(host), self.draw(), tensor_bytes()
        self.tally: Counter[str] = Counter()

    def draw(self) -> torch.Tensor:
        with torch.no_grad():
            return predict(self.host, "a word0", "a cat")

    def let_fail(self, effort: str, moment: int, what: str) -> str:
        """One merge with one fault.

        Returns:
            what became of the merge
        """
        for name, content in self._files.items():
            (self.folder / f"{name}.safetensors").write_bytes(content)

        def happens() -> None:
            if what in ERRORS:
                raise ERRORS[what]()
            MISCHIEF[what](self.folder / "one.safetensors")

        faults = Faults(moment, happens)
        try:
            merge_and_save(self.host, self.folder, effort, faults)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (whatever was let in)
            outcome = type(error).__name__
            error.__traceback__ = None  # which holds every frame with its tensors
        else:
            outcome = "finished"
        self.tally[what] += 1
        where = faults.seen[min(moment, len(faults.seen) - 1)]
        self.require_untouched(f"{what}, {where} (moment {moment} of {effort})")
        return outcome

    def require_untouched(self, told: str) -> None:
        assert state_of(self.host) == self.state, told
        assert torch.equal(self.draw(), self.picture), f"{told}: the next picture is another"
        assert tensor_bytes() <= 1.02 * self.memory, f"{told}: memory is not back"
        hidden = [path.name for path in self.folder.rglob("*") if path.name.startswith(".")]
        assert not hidden and not list((self.folder / "temporary").iterdir()), f"{told}: a temporary file stays"
        written = {path.name: path.read_bytes() for path in (self.folder / "out").iterdir()}
        assert written.keys() == self.written.keys(), told


@pytest.fixture(scope="module")
def world(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=1, steps=2)
        for name, number in {"STOP_PATHS": 1, "STOP_STEPS": 2, "SCALE_POINTS": 2, "RECORDED_POINTS": 4}.items():
            patch.setattr(stage_plan, name, number)
        patch.setattr(stages, "RECORDED_POINTS", 4)
        yield World(opened(tiny.SD1), tmp_path_factory.mktemp("faults"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 12,
    database=None,
    phases=[Phase.generate],  # a smaller moment is no simpler one
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    effort=st.sampled_from(["layers", "balanced"]),
    share=st.floats(0, 1, exclude_max=True),
    what=st.sampled_from([*ERRORS, *MISCHIEF]),
)
def test_a_fault_at_any_moment_leaves_everything_as_it_was(world: World, effort: str, share: float, what: str) -> None:
    moments = world.moments[effort]
    outcome = world.let_fail(effort, int(share * len(moments)), what)
    if what in ERRORS:
        error = type(ERRORS[what]()).__name__
        # what the merge goes on from: a smaller batch, and what a person is told in clear words
        assert outcome in (error, "LoraclrError") or (what == "the card is full" and outcome == "finished"), outcome
    else:
        assert outcome in ("finished", "LoraclrError"), outcome


def test_a_fault_at_the_first_moment_of_each_kind_leaves_everything_as_it_was(world: World) -> None:
    """Wherever random moments may fall; the faults take turns. Every fourth kind, where there is not more time."""
    moments, kinds = world.moments["balanced"], itertools.cycle(ERRORS)
    for where in sorted(set(moments), key=moments.index)[:: 4 if EXAMPLES == 12 else 1]:
        world.let_fail("balanced", moments.index(where), next(kinds))


def test_faults_were_let_in_everywhere(world: World, record_property: Callable[[str, object], None]) -> None:
    """The control: the moments are of every stage, and every kind of fault happened."""
    stages = {where.removeprefix("beginning ") for where in world.moments["balanced"] if where.startswith("beginning")}
    assert {Stage.RECORDING.value, Stage.REFINING.value, Stage.MEASURING.value, Stage.DRAWING.value} <= stages
    assert {"a backward pass", "writing", "placing", "decode"} <= {
        w.partition(" ")[2] for w in world.moments["balanced"]
    }
    faults = sum(world.tally.values())
    if not faults:
        pytest.skip("the tests that let them in were not chosen")
    assert len(world.tally) >= 5
    record_property("faults injected and survived", faults)
    print(f"{faults} faults injected and survived: {dict(world.tally)}")  # noqa: T201  (for `pytest -s`)


def test_what_is_left_behind_would_be_seen(world: World) -> None:
    """The control of the tests above."""
    module = next(iter(world.host.layers().values())).module
    handle = module.register_forward_hook(lambda *_: None)
    with pytest.raises(AssertionError, match="a hook"):
        world.require_untouched("a hook")
    handle.remove()
    with torch.no_grad():
        kept = module.weight.view(-1)[0].clone()
        module.weight.view(-1)[0] += 1
        with pytest.raises(AssertionError, match="a weight"):
            world.require_untouched("a weight")
        module.weight.view(-1)[0] = kept
    held = torch.zeros(world.memory // 4)
    with pytest.raises(AssertionError, match="memory is not back"):
        world.require_untouched("memory")
    assert len(held)
    del held
    left = world.folder / "out" / ".zoo.tmp"
    left.write_bytes(b"")
    with pytest.raises(AssertionError, match="a temporary file stays"):
        world.require_untouched("a file")
    left.unlink()
    world.require_untouched("nothing")
