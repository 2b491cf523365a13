"""Where a layer's weight lies in a checkpoint's single file.

The file names a tensor by its path in the compvis model (ldm, sgm), which the WebUI loads; LoRA files name the layer by that path
or by the one in diffusers and transformers (`files/layer_keys.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..files import UNET, StoredTensor, diffusers_name, split_key

#: the checkpoint's parts -> the beginning of the WebUI's names of their modules
_PARTS = {
    "model.diffusion_model.": "diffusion_model_",
    # early files of SD1 leave one level out
    "cond_stage_model.transformer.encoder.": "transformer_text_model_encoder_",
    "cond_stage_model.": "",
    # the refiner's only text encoder is SDXL's second
    "conditioner.embedders.0.model.": "1_model_",
    "conditioner.embedders.0.": "0_",
    "conditioner.embedders.1.": "1_",
}
#: OpenCLIP packs the three projections of its attention into one tensor, in this order
_PACKED = {".in_proj_weight": "", ".in_proj_bias": ".bias"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
#: parameters -> what follows the layer's key; a bias is a layer of its own, with one input
_PARAMETERS = {".weight": "", ".bias": ".bias"}


@dataclass(frozen=True)
class Place:
    """Where a layer's weight lies in a checkpoint's file.

    Attributes:
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
    module, dot, last = (_PARTS[part] + tensor.name[len(part) :]).rpartition(".")
    rows, parameter = tensor.shape[0], dot + last
    if parameter in _PACKED:
        each = rows // len(_PROJECTIONS)
        for number, projection in enumerate(_PROJECTIONS):
            names = _names(f"{module}_{projection}")
            yield [name + _PACKED[parameter] for name in names], number * each, each
    elif parameter in _PARAMETERS:
        yield [name + _PARAMETERS[parameter] for name in _names(module)], 0, rows


def _names(module: str) -> list[str]:
    """What files call a module of the loaded model."""
    parts = split_key(f"{module.replace('.', '_')}.alpha")
    if parts is None:
        return []
    key = parts[0]
    other = diffusers_name(key[len(UNET) :]) if key.startswith(UNET) else None
    return [key] if other is None else [key, UNET + other]
