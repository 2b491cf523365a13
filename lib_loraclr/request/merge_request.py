"""What to merge and how. Checked before a tensor is read; JSON both ways; no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeVar

from ..errors import LoraclrError, unknown_name
from .options import parse_number
from .prompts import PromptOptions

KINDS = ("subject", "style")
PRECISIONS = ("fp16", "bf16", "fp32")
#: what a merge is saved as -> what that is, for people
SAVE_AS = {
    "lora": "a LoRA; a LoCon where convolutions are changed",
    "full": "every layer's whole change, exact and large (a LyCORIS file)",
    "checkpoint": "a copy of the checkpoint with the merge in it, which needs no tag",
}
#: figures of `RecordingOptions` -> least and most
RECORDING_RANGES = {
    "paths": (1, 400),
    "steps": (2, 1000),
    "renoised": (0, 10000),
    "guidance": (0, 100),
    "clip_skip": (0, 12),
}
LARGEST_SEED = 2**31 - 1
T = TypeVar("T")


@dataclass(frozen=True)
class Concept:
    """One input LoRA.

    Attributes:
        lora: path of the file, or the name the WebUI knows it by
        te_weight, unet_weight: strength, exactly as in `<lora:name:te:unet>`
        trigger: the words that call it; None for those of its card, its metadata or its name; empty for a style that needs none
        kind: "subject" or "style"
        importance: how much its errors count; not the weight
        prompts: prompts to record in place of the templates
        dyn: how many of its ranks to use, as `dyn=` in a prompt; 0 for all
        alone: whether it is never taught beside another concept in one picture
        outfits: other sets of trigger words that call it too, each taught as much as the first
        applied_to: of a style with trigger words the subjects that it is taught on, by their labels; empty for all
    """

    lora: str
    te_weight: float = 1.0
    unet_weight: float = 1.0
    trigger: str | None = None
    kind: str = "subject"
    importance: float = 1.0
    prompts: tuple[str, ...] = ()
    dyn: int = 0
    alone: bool = False
    outfits: tuple[str, ...] = ()
    applied_to: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What people call it: the file's name without folder and extension."""
        return PurePath(self.lora.replace("\\", "/")).stem


@dataclass(frozen=True)
class RecordingOptions:
    """How the model is run while it is recorded.

    Attributes:
        paths: denoising paths per concept
        steps: of each path
        renoised: points per concept besides, on finished pictures with fresh noise
        guidance: classifier-free guidance on these paths
        height, width: of the picture in pixels; 0 for the smallest sensible size that the LoRAs were trained at, or the
            checkpoint's own
        clip_skip: which layer of the text encoder prompts are read from, counted from the last, 1; 0 for what the LoRAs were
            trained with, where they say so
    """

    paths: int = 32
    steps: int = 8
    renoised: int = 0
    guidance: float = 5.0
    height: int = 0
    width: int = 0
    clip_skip: int = 0

    def check(self) -> None:
        """Check the figures' ranges.

        Raises:
            LoraclrError: a figure is out of range
        """
        for name, (low, high) in RECORDING_RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise LoraclrError(f"recording.{name} is {value}: give a number from {low} to {high}.")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value and (value % 64 or not 64 <= value <= 4096):
                raise LoraclrError(f"recording.{name} is {value}: give a multiple of 64 up to 4096, or 0.")


@dataclass(frozen=True)
class MergeRequest:
    """A whole merge.

    Attributes:
        concepts: at least one
        method, options: which method, and its options by name
        rank: "auto", "full", or a number
        kept: the share of the merge's effect on the recorded inputs that the automatic rank keeps
        save_as: "lora", "full" or "checkpoint" (`SAVE_AS`); where it is not "lora", rank "auto" keeps everything
        precision: of the file: fp16, bf16, fp32; a checkpoint keeps its own
        seed: of everything that is drawn
        memory_mb: for recorded inputs and teachers' predictions together
        prompts, recording: what is asked of the model, and how
    """

    concepts: tuple[Concept, ...]
    method: str = "contrastive"
    options: Mapping[str, Any] = field(default_factory=dict)
    rank: str = "auto"
    kept: float = 0.999
    save_as: str = "lora"
    precision: str = "fp16"
    seed: int = 0
    memory_mb: int = 1024
    prompts: PromptOptions = field(default_factory=PromptOptions)
    recording: RecordingOptions = field(default_factory=RecordingOptions)

    @property
    def whole(self) -> bool:
        """Whether the file holds whole deltas, so that their rank costs nothing and only the sum is rounded."""
        return self.save_as != "lora"

    def check(self) -> None:
        """Check everything that needs no file and no model.

        Raises:
            LoraclrError: the first thing that is wrong
        """
        if not self.concepts:
            raise LoraclrError("There is nothing to merge: name at least one LoRA.")
        _check_texts(self)
        for concept in self.concepts:
            _check_concept(concept)
        loras, labels = [c.lora for c in self.concepts], [c.label for c in self.concepts]
        for lora, label in zip(loras, labels, strict=True):
            if loras.count(lora) > 1:
                raise LoraclrError(
                    f"{lora} is named {loras.count(lora)} times: name it once, and raise its weight instead."
                )
            if labels.count(label) > 1:
                raise LoraclrError(
                    f"Two LoRAs are called {label} ({lora} is one): name it once, or rename one of the files."
                )
        for concept in self.concepts:
            _check_applied(concept, self.concepts)
        self._check_output()
        if self.memory_mb < 1:
            raise LoraclrError(f"The memory budget is {self.memory_mb} MB: give at least 1.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise LoraclrError(f"The seed is {self.seed}: give a whole number from 0 to {LARGEST_SEED}.")
        self.recording.check()
        self.prompts.check()

    def seeded(self) -> MergeRequest:
        """With a seed that is drawn, where it is -1; every door calls it, so that the merge itself knows the seed that it had."""
        return dataclasses.replace(self, seed=drawn_seed(self.seed))

    def _check_output(self) -> None:
        if self.save_as not in SAVE_AS:
            raise unknown_name("way to save a merge", self.save_as, SAVE_AS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.save_as == "full" and self.precision == "bf16":
            raise LoraclrError(
                "The precision is bf16 of a file of whole deltas (save_as full): the WebUI adds those in the file's precision, "
                "and would round the checkpoint to bf16. Choose fp16 or fp32, or save as lora."
            )
        if self.rank not in ("auto", "full") and not (str(self.rank).isdecimal() and int(self.rank) >= 1):
            raise LoraclrError(f"The rank is {self.rank!r}: give auto, full, or a whole number from 1.")
        if not 0 < self.kept <= 1:
            raise LoraclrError(f"The share to keep is {self.kept}: give a number above 0 and up to 1.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergeRequest:
        """From JSON.

        Raises:
            LoraclrError: an unknown name (with the nearest one), or a value of the wrong type
        """
        values = dict(_mapping(values, "the request"))
        concepts = values.pop("concepts", [])
        if not isinstance(concepts, list | tuple):
            raise LoraclrError(f"concepts is {concepts!r} in the request: give a list.")
        if "rank" in values:
            values["rank"] = str(values["rank"])
        return _build(
            cls,
            {
                **values,
                "concepts": tuple(_build(Concept, c, f"concept {i + 1}") for i, c in enumerate(concepts)),
                "options": dict(_mapping(values.get("options", {}), "options")),
                "prompts": _build(PromptOptions, values.get("prompts", {}), "prompts"),
                "recording": _build(RecordingOptions, values.get("recording", {}), "recording"),
            },
            "the request",
        )

    @classmethod
    def from_json(cls, text: str) -> MergeRequest:
        """From a JSON text.

        Raises:
            LoraclrError: not JSON, or as `from_dict`
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:  # nested without end, or a number too long to be read
            raise LoraclrError(f"The request is not JSON ({error}): correct it there.") from None


def _check_texts(request: MergeRequest) -> None:
    """Every text can be written into a file and shown: JSON and file names can hold halves of characters."""
    for part in (vars(request), vars(request.prompts), request.options, *map(vars, request.concepts)):
        for value in part.values():
            for text in value if isinstance(value, list | tuple) else (value,):
                if isinstance(text, str) and text.encode(errors="replace").decode() != text:
                    raise LoraclrError(f"{text!r} has half of a character in it: write it anew, or rename the file.")


def _check_concept(concept: Concept) -> None:
    if concept.kind not in KINDS:
        raise unknown_name("kind of concept", concept.kind, KINDS)
    for name in ("te_weight", "unet_weight"):
        if not math.isfinite(getattr(concept, name)):
            raise LoraclrError(f"{name} of {concept.label} is {getattr(concept, name)}: give a finite number.")
    if not (math.isfinite(concept.importance) and concept.importance > 0):
        raise LoraclrError(f"The importance of {concept.label} is {concept.importance}: give a number above 0.")
    if concept.dyn < 0:
        raise LoraclrError(f"dyn of {concept.label} is {concept.dyn}: give a number of ranks, or 0 for all.")


def _check_applied(concept: Concept, concepts: Sequence[Concept]) -> None:
    """A style is applied to subjects that are there, and only where words call it can it be left out of others."""
    if concept.outfits and (concept.kind != "subject" or concept.prompts):
        raise LoraclrError(
            f"{concept.label} has other sets of trigger words ({concept.outfits[0]}, …), which only a subject without prompts of "
            "its own can have: leave them out."
        )
    if not concept.applied_to:
        return
    if concept.kind != "style" or concept.trigger == "":
        raise LoraclrError(
            f"{concept.label} is to be applied to {', '.join(concept.applied_to)} alone: say that it is a style (kind=style) and "
            "give it trigger words (trigger=…), for without them it acts on everything."
        )
    subjects = [other.label for other in concepts if other.kind == "subject"]
    for label in concept.applied_to:
        if label not in subjects:
            raise unknown_name("subject", label, subjects, where=f"that {concept.label} is applied to")


def drawn_seed(seed: int) -> int:
    """The seed, or where it is -1 another each time, as everywhere in the WebUI."""
    return random.randrange(LARGEST_SEED) if seed == -1 else seed


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise LoraclrError(f"{where} is {value!r}: give an object with names and values.")
    return value


def _build(cls: type[T], values: Any, where: str) -> T:
    """A dataclass from JSON: unknown names refused, simple types checked against the defaults'."""
    if isinstance(values, cls):
        return values
    fields = {item.name: item for item in dataclasses.fields(cls)}
    parsed = {}
    for name, value in _mapping(values, where).items():
        if name not in fields:
            raise unknown_name("field", name, fields, where=f"in {where}")
        parsed[name] = _convert(fields[name], value, f"{name} in {where} is {value!r}")
    missing = [
        n for n, f in fields.items() if n not in parsed and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise LoraclrError(f"{where} has no {missing[0]}: give it.")
    return cls(**parsed)


def _convert(item: dataclasses.Field, value: Any, problem: str) -> Any:
    """`value` in the type of the field, where that is a simple one."""
    default = item.default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise LoraclrError(f"{problem}: give true or false.")
        return value
    if isinstance(default, int | float):
        return parse_number(value, problem, whole=isinstance(default, int))
    if item.type.startswith("str") and not (isinstance(value, str) or (value is None and default is None)):
        raise LoraclrError(f"{problem}: give text.")
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise LoraclrError(f"{problem}: give a list of texts.")
        return tuple(value)
    return value


_WEIGHT_KEYS = {"te": "te_weight", "unet": "unet_weight", "dyn": "dyn"}
_NOT_WEIGHTS = {
    "lbw": "lbw= (block weights) is not applied by a merge: leave it out",
}


def parse_lora_argument(text: str) -> Concept:
    """`file.safetensors:te:unet:dyn`, as in a prompt: weights from the right, so that `C:\\a.safetensors:.7` works.

    One weight is for both text encoder and UNet; `te=…` and `unet=…` name them. The UNet's is the text encoder's unless
    it is given by itself, as in the WebUI (`extensions-builtin/Lora/extra_networks_lora.py`).

    Raises:
        LoraclrError: a weight that is not a number, or a prompt option that a merge does not apply
    """
    path, parts = text, []
    while (match := re.match(r"^(.*):([^:/\\]*)$", path)) and len(match[1]) > 1:
        path = match[1]
        parts.insert(0, match[2])
    weights: dict[str, float] = {}
    positional = []
    for part in parts:
        name, equals, value = part.partition("=")
        if equals and name in _NOT_WEIGHTS:
            raise LoraclrError(f"{text}: {_NOT_WEIGHTS[name]}.")
        if equals and name not in _WEIGHT_KEYS:
            raise unknown_name("weight", name, _WEIGHT_KEYS, where=f"in {text}")
        what = f"The weight in {text} is {value if equals else part!r}"
        whole = name == "dyn" if equals else len(positional) == 2
        number = parse_number(value if equals else part, what, whole=whole)
        if equals:
            weights[_WEIGHT_KEYS[name]] = number
        else:
            positional.append(number)
    if len(positional) > 3:
        raise LoraclrError(f"{text} has {len(positional)} weights: give one for both, or text encoder, UNet and dyn.")
    te_weight = float(weights.get("te_weight", positional[0] if positional else 1.0))
    unet_weight = float(weights.get("unet_weight", positional[1] if len(positional) >= 2 else te_weight))
    dyn = int(weights.get("dyn", positional[2] if len(positional) == 3 else 0))
    return Concept(path, te_weight, unet_weight, dyn=dyn)
