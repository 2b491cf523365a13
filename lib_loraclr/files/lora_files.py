"""LoRA files, read with suspicion.

Only `.safetensors` is read. `.pt`, `.ckpt` and `.bin` are pickles, and reading a pickle runs what its author put there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LoraclrError
from . import embeddings
from .adapter_config import assumed, stated_alphas
from .deltas import KNOWN_PARAMETERS, kind_of, unused_alpha, unused_parameters
from .foreign_families import foreign_family
from .layer_keys import own_parameter, split_key
from .tensor_files import DTYPE_NAMES, HEADER_LENGTH, NewTensor, read_header, unreadable, write_tensors

_PICKLES = {".pt", ".ckpt", ".bin", ".pth"}


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds; every key of the file is in exactly one of `layers`, `embeddings`, `unknown`.

    Attributes:
        path: where it was read
        metadata: its `__metadata__`, strings as they are
        layers: layer key -> {parameter name: tensor}, e.g. {"lora_up.weight": `[d_out, r]`, ...}
        embeddings: tensors of bundled embeddings (`bundle_emb.…`), passed through by a merge
        unknown: keys that are not of a form we know
        warnings: what had to be assumed
        names: layer key -> parameter -> the file's own key
    """

    path: Path
    metadata: Mapping[str, str]
    layers: Mapping[str, Mapping[str, Tensor]]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def own_key(self, layer: str, parameter: str | None = None) -> str:
        """What the file itself calls a parameter of a layer; without one, the first of the layer's keys."""
        own = self.names.get(layer, {})
        if parameter is None:
            return next(iter(own.values()), layer)
        return own.get(parameter, f"{layer}.{parameter}")

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def hash(self) -> str:
        """The hash the WebUI knows the file by (`sshs_model_hash`): sha256 of all that follows the header."""
        with self.path.open("rb") as stream:
            (length,) = HEADER_LENGTH.unpack(stream.read(8))
            stream.seek(8 + length)
            return _sha256(stream)

    def without_layers(self) -> LoraFile:
        """The same file without the tensors of its layers, its hash known: it may be gone when that is asked for."""
        light = dataclasses.replace(self, layers={})
        light.__dict__["hash"] = self.hash
        return light


def require_safetensors(path: Path) -> None:
    """Refuse what cannot be a LoRA file before it is opened.

    Raises:
        LoraclrError: no such file, a folder, a pickle, or another extension
    """
    if path.suffix.lower() in _PICKLES:
        raise LoraclrError(
            f"{path} is a pickle ({path.suffix}), and reading a pickle can run any program its author put there: "
            "convert it to .safetensors first."
        )
    if path.suffix.lower() != ".safetensors":
        raise LoraclrError(f"{path} is not a .safetensors file: name a LoRA in the safetensors format.")
    if not path.is_file():
        raise LoraclrError(f"There is no file {path}: check the name and the folder.")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a `.safetensors` file, and its metadata.

    Raises:
        LoraclrError: not safetensors, truncated, a header that does not fit the file, or numbers that torch does not know
    """
    require_safetensors(path)
    read_header(path)  # first, as it refuses any bytes at all, and says why
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    # of a type that torch does not have the package says so in many ways
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise unreadable(path, error) from error


def read_lora(path: Path | str) -> LoraFile:
    """Read a LoRA file.

    Raises:
        LoraclrError: it cannot be read, holds no layer, NaN or infinity in what is used, numbers that no LoRA is trained in, or
            an embedding that could not be passed on
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    bundled = {key: tensor for key, tensor in tensors.items() if key.startswith(embeddings.PREFIX)}
    names, unknown = _sorted_keys([key for key in tensors if key not in bundled])
    if not names and (family := foreign_family(unknown, metadata)):
        raise LoraclrError(f"{path} looks like a LoRA for {family}, which cannot be merged: leave it out.")
    if not names:
        shown = ", ".join([*unknown, *bundled][:3]) or "none at all"
        raise LoraclrError(f"{path} holds no LoRA layer (its keys: {shown}): is it a LoRA for Stable Diffusion?")
    layers = {layer: {name: tensors[key] for name, key in own.items()} for layer, own in names.items()}
    _check_numbers(layers, names, path)
    _check_shapes(layers, path)
    _check_embeddings(bundled, path)
    peft = any(key.startswith("base_model.") for key in tensors)
    one_name = {layer: next(iter(own.values())) for layer, own in names.items()}
    for layer, alpha in stated_alphas(layers, one_name, metadata, path, peft=peft).items():
        layers[layer]["alpha"] = alpha
    warning = assumed(layers) if peft else None
    return LoraFile(path, metadata, layers, bundled, tuple(unknown), (warning,) if warning else (), names)


def _sorted_keys(keys: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Layer key -> parameter -> the file's own key, and keys that belong to no layer."""
    names: dict[str, dict[str, str]] = {}
    modules: dict[str, str] = {}
    unclear, unknown = [], []
    for key in keys:
        parts = split_key(key)
        if parts is None or parts[1] not in KNOWN_PARAMETERS:
            unclear.append(key)
        # a parameter that a file holds twice, in two styles, is read once
        elif parts[1] in names.setdefault(parts[0], {}):
            unknown.append(key)
        else:
            names[parts[0]][parts[1]] = key
            modules[_module(key)] = parts[0]
    for key in unclear:
        # what stands beside the parameters of a layer belongs to it, whatever it is called, and may change what they mean
        ends = [place for place, letter in enumerate(key) if letter == "."]
        owned = [(modules[_flat(key[:end])], key[end + 1 :]) for end in ends if _flat(key[:end]) in modules]
        layer, name = owned[-1] if owned else split_key(key) or (None, "")
        if layer is None or name in names.get(layer, ()):
            unknown.append(key)
        else:
            names.setdefault(layer, {})[name] = key
    return names, unknown


def _module(key: str) -> str:
    """The part of a key that names the module, as `_flat` has it."""
    parameter = own_parameter(key)
    return _flat(key[: -len(parameter) - 1])


def _flat(path: str) -> str:
    # some files write the magnitudes' path with dots and the factors' without
    return path.replace(".", "_")


def _check_numbers(
    layers: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, Mapping[str, str]], path: Path
) -> None:
    """Refuse NaN and infinity in what is used, and types of numbers that no LoRA is trained in.

    Raises:
        LoraclrError: one of them
    """
    for layer, parameters in layers.items():
        kind = kind_of(parameters)
        idle = set(unused_parameters(kind, parameters)) if kind else set()
        idle |= {"alpha"} if unused_alpha(parameters) else set()
        for name, tensor in parameters.items():
            key = names[layer][name]
            if tensor.dtype not in DTYPE_NAMES:
                raise LoraclrError(
                    f"{path} holds {key} as {tensor.dtype}, which cannot be merged: convert the file to fp16."
                )
            if name not in idle and not _is_finite(tensor):
                raise LoraclrError(
                    f"{path} holds NaN or infinity in {key}: the training that made it went wrong; use an earlier epoch."
                )


def _check_embeddings(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what the WebUI would load neither here nor out of the merged file.

    Raises:
        LoraclrError: an embedding of an unknown form, or of numbers that are none
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise LoraclrError(
                f"{path} bundles the embedding {key} as {tensor.dtype}, which a merge cannot pass on: "
                "leave this file out, or take the embedding out of it."
            )
        if not _is_finite(tensor):
            raise LoraclrError(f"{path} holds NaN or infinity in {key}: take the embedding out of it, or leave it out.")
    try:
        embeddings.embeddings_by_name(tensors)
    except LoraclrError as error:
        raise LoraclrError(f"{path}: {error}") from error


def _check_shapes(layers: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Refuse numbers that are not one number, and factors that are no matrices, whatever kind of network they are of.

    Raises:
        LoraclrError: one of them
    """
    for layer, parameters in layers.items():
        for name, tensor in parameters.items():
            single = name in ("alpha", "scale", "on_input")
            factor = re.match(r"(lora_(up|down|mid|A|B)|hada|lokr|[ab][12]\.weight)", name)
            if (tensor.numel() != 1) if single else (tensor.numel() == 0 or (factor and tensor.dim() < 2)):
                wanted = "one number" if single else "a matrix" if factor else "numbers"
                raise LoraclrError(
                    f"{path} holds {layer}.{name} with shape {list(tensor.shape)}, and {wanted} should stand there: the file is "
                    "damaged, leave it out."
                )


def _is_finite(tensor: Tensor) -> bool:
    # torch cannot ask this of 8-bit floats; every one of them is a float32 too
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A `.safetensors` file as bytes, the same for the same content: tensors of the widest type first, then by name."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    stream = io.BytesIO()
    write_tensors(stream, [NewTensor.of(name, tensors[name]) for name in names], lambda _: metadata)
    return stream.getvalue()


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with fresh `sshs_model_hash` and `sshs_legacy_hash`, computed as kohya's trainer does.

    A copied hash would make the WebUI take the file for its parent (`extensions-builtin/Lora/network.py`).
    """
    kept = {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    blob = serialize(tensors, {key: value for key, value in kept.items() if key.startswith("ss_")})
    (length,) = HEADER_LENGTH.unpack(blob[:8])
    legacy = hashlib.sha256(blob[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {**kept, "sshs_model_hash": hashlib.sha256(blob[8 + length :]).hexdigest(), "sshs_legacy_hash": legacy}


def _sha256(stream) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
