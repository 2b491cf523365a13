"""Where a layer's weight lies in a checkpoint's single file.

The file names a tensor by its path in the compvis model (ldm, sgm), which the WebUI loads; LoRA files name the layer by that path
or by the one in diffusers and transformers (`layer_keys`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .layer_keys import UNET, split_key
from .tensor_files import StoredTensor
from .unet_names import diffusers_name

#: the checkpoint's parts -> the beginning of the WebUI's names of their modules
_PARTS = {
    "model.diffusion_model.": "diffusion_model_",
    # early files of SD1 leave one level out
    "cond_stage_model.transformer.encoder.": "transformer_text_model_encoder_",
    "cond_stage_model.": "",
    "conditioner.embedders.0.": "0_",
    "conditioner.embedders.1.": "1_",
}
#: OpenCLIP packs the three projections of its attention into one tensor, in this order
_PACKED, _PROJECTIONS = ".in_proj_weight", ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Place:
    """Attributes:
    tensor: that holds the layer's weight
    first, rows: the rows of it that are the layer's
    """

    tensor: StoredTensor
    first: int
    rows: int


def find_places(tensors: Iterable[StoredTensor], layer_keys: Iterable[str]) -> dict[str, Place]:
    """The place of each layer's weight; layers that the file does not hold are left out.

    Args:
        layer_keys: of the layers to find, in either style
    """
    wanted, found = set(layer_keys), {}
    for tensor in tensors:
        for names, first, rows in _layers_in(tensor):
            for key in wanted.intersection(names):
                found[key] = Place(tensor, first, rows)
    return found


def _layers_in(tensor: StoredTensor) -> Iterator[tuple[list[str], int, int]]:
    """`(names, first row, rows)` of every layer whose weight is in a tensor."""
    part = next((part for part in _PARTS if tensor.name.startswith(part)), None)
    if part is None or not tensor.shape:
        return
    path, rows = _PARTS[part] + tensor.name[len(part) :], tensor.shape[0]
    if path.endswith(_PACKED):
        each = rows // len(_PROJECTIONS)
        for number, projection in enumerate(_PROJECTIONS):
            yield _names(f"{path.removesuffix(_PACKED)}_{projection}"), number * each, each
    elif path.endswith(".weight"):
        yield _names(path.removesuffix(".weight")), 0, rows


def _names(module: str) -> list[str]:
    """What files call a module of the loaded model."""
    parts = split_key(f"{module.replace('.', '_')}.alpha")
    if parts is None:
        return []
    key = parts[0]
    other = diffusers_name(key[len(UNET) :]) if key.startswith(UNET) else None
    return [key] if other is None else [key, UNET + other]
